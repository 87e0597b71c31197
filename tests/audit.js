// What is wrong for readers who do not see the page, do not point, or see little contrast; one line for each.
() => {
  const found = [];
  const say = (what, element) => found.push(`${what}: ${element.outerHTML.slice(0, 120)}`);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (e) => e.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true });
  const text = (ids) => (ids ?? '').split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? '').join('');
  const named = (e) => (e.getAttribute('aria-label') ?? text(e.getAttribute('aria-labelledby'))).trim() || e.innerText.trim();

  if (!document.documentElement.lang) found.push('language: none');
  if (!document.title) found.push('title: none');
  if (all('main').length !== 1) found.push('landmark: not one main');

  const headings = all('h1, h2, h3, h4, h5, h6').filter(shown);
  if (headings.filter((e) => e.matches('h1')).length !== 1) found.push('heading: not one h1');
  let level = 0;
  for (const heading of headings) {
    const next = Number(heading.tagName[1]);
    if (next > level + 1) say('heading skips a level', heading);
    level = next;
  }

  const ids = all('[id]').map((e) => e.id);
  for (const id of new Set(ids.filter((one, n) => ids.indexOf(one) !== n))) found.push(`id twice: ${id}`);
  for (const e of all('[aria-labelledby], [aria-describedby], [aria-controls]')) {
    for (const name of ['aria-labelledby', 'aria-describedby', 'aria-controls']) {
      for (const id of (e.getAttribute(name) ?? '').split(/\s+/).filter(Boolean)) {
        if (!document.getElementById(id)) say(`id of ${name} is nowhere`, e);
      }
    }
  }
  for (const e of all('[tabindex]')) if (e.tabIndex > 0) say('tabindex above 0', e);
  for (const e of all('img:not([alt]), svg:not([aria-hidden]):not([role=img])')) say('image without words', e);
  for (const e of all('a[href], button, summary, audio, progress, [role=img], [role=region]').filter(shown)) {
    if (!named(e)) say('name: none', e);
  }
  for (const e of all('input:not([type=hidden]), select, textarea').filter(shown)) {
    if (!e.labels.length && !e.getAttribute('aria-label')) say('label: none', e);
  }
  for (const e of all('th:not([scope])')) say('table header without scope', e);
  for (const e of all('ul > :not(li), ol > :not(li)')) say('list with something else', e);
  for (const e of all('main *').filter(shown)) { // what scrolls must be reached by keyboard
    const scrolls = /auto|scroll/.test(getComputedStyle(e).overflow) && e.scrollHeight + e.scrollWidth > e.clientHeight + e.clientWidth + 2;
    if (scrolls && e.tabIndex < 0) say('keyboard cannot scroll', e);
  }

  const numbers = (colour) => { // any colour as 0–255 and opacity
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (e) => (e ? over(numbers(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255]);
  for (const e of all('body *').filter(shown)) {
    if (e.closest(':disabled, .unseen, .skip') || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const ground = behind(e);
    const [a, b] = [light(over(numbers(getComputedStyle(e).color), ground)), light(ground)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) say(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)}`, e);
  }
  return found;
}
