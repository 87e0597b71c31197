// Curves of a job over its steps: loss, learning rate, gradient norm, seconds, and the mix of sources. One crosshair.

import { Series, oneAtATime, short, smooth } from './series.js';

const POINTS = 1000;
const PANELS = [
  { name: 'loss', title: 'Loss', log: true, smooth: true },
  { name: 'lr', title: 'Learning rate' },
  { name: 'grad_norm', title: 'Gradient norm', log: true, smooth: true },
  { name: 'seconds', title: 'Seconds per step', log: true, smooth: true },
];
const HUES = 6;
const WHOLE = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6].map((power) => n * 10 ** power)).sort((a, b) => a - b);
const dark = matchMedia('(prefers-color-scheme: dark)');
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export class Curves {
  constructor(section, job) {
    this.section = section;
    this.series = new Series(job, POINTS);
    this.stale = false;
    this.update = oneAtATime(() => this.read());
    this.panels = new Map(); // key -> {figure, plot, note}
    this.charts = section.querySelector('.charts');
    this.smoothing = section.querySelector('#smoothing');
    this.log = section.querySelector('#log');
    section.querySelector('.tools').hidden = false;
    this.smoothing.addEventListener('input', () => {
      this.smoothing.nextElementSibling.textContent = Number(this.smoothing.value).toFixed(2).replace(/^0/, '');
      this.draw();
    });
    this.log.addEventListener('change', () => this.rebuild());
    dark.addEventListener('change', () => this.rebuild());
    new ResizeObserver(() => this.fit()).observe(this.charts);
  }

  // By `update` alone: an answer that was asked for before a `reload` must not come after it.
  async read() {
    if (this.stale) this.series.clear();
    this.stale = false;
    try {
      if (await this.series.update()) this.draw();
      this.say(this.series.step ? '' : 'No step yet.');
    } catch (error) {
      this.say(`No curves: ${error.message}`);
    }
  }

  reload() {
    this.stale = true;
    return this.update();
  }

  say(words) {
    const waiting = this.section.querySelector('.waiting');
    waiting.textContent = words;
    waiting.hidden = !words;
  }

  rebuild() {
    for (const { figure, plot } of this.panels.values()) {
      plot.destroy();
      figure.remove();
    }
    this.panels.clear();
    this.draw();
  }

  draw() {
    const weight = Number(this.smoothing.value);
    for (const panel of PANELS) {
      const found = this.series.byName.get(panel.name);
      if (!found?.[0].length) continue;
      const log = panel.log && this.log.checked;
      const [steps, raw] = found;
      const values = log ? raw.map((v) => (v > 0 ? v : null)) : raw; // a logarithm has no place for 0
      const smoothed = panel.smooth ? smooth(steps, raw, weight) : raw;
      this.show(panel.name, [steps, values, smoothed], () => ({
        title: panel.title, log,
        lines: [{ hue: 0, ghost: true, hidden: !panel.smooth }, { hue: 0 }],
        words: ([, r, s]) => (panel.smooth && weight ? `${short(r)} (smoothed ${short(s)})` : short(r)),
      }));
    }
    this.drawMix();
  }

  drawMix() {
    const sources = [...this.series.byName.keys()]
      .filter((name) => name.startsWith('realised_mix.')).map((name) => name.slice('realised_mix.'.length)).sort();
    const tables = sources.flatMap((source) => ['realised_mix', 'requested_mix'].map(
      (kind) => this.series.byName.get(`${kind}.${source}`) ?? [[], []],
    ));
    if (!tables.length) return;
    if (this.panels.get('mix')?.sources !== sources.join()) this.remove('mix');
    this.show('mix', uPlot.join(tables), () => ({
      title: 'Mix', share: true, sources: sources.join(),
      legend: sources,
      lines: sources.flatMap((_, n) => [{ hue: n % HUES, area: true }, { hue: n % HUES, dashed: true }]),
      words: (values) => sources.map(
        (source, n) => `${source} ${percent(values[2 * n + 1])} (wanted ${percent(values[2 * n + 2])})`,
      ).join(' · '),
    }));
  }

  remove(key) {
    const panel = this.panels.get(key);
    panel?.plot.destroy();
    panel?.figure.remove();
    this.panels.delete(key);
  }

  // The panel's plot with these data, made by `describe` where it is not there yet.
  show(key, data, describe) {
    const about = describe();
    const panel = this.panels.get(key);
    if (!panel) {
      this.panels.set(key, this.make(key, about, data));
      return;
    }
    panel.words = about.words;
    const { plot } = panel;
    const { min, max } = plot.scales.x;
    const zoomed = min !== null && (min > data[0][0] || max < panel.last); // columns grow in place: `last` is as drawn
    panel.last = data[0].at(-1);
    plot.setData(data, !zoomed);
    if (zoomed) plot.redraw();
    panel.say(null);
  }

  make(key, about, data) {
    const figure = document.createElement('figure');
    figure.className = `chart ${key}`;
    const caption = document.createElement('figcaption');
    const title = document.createElement('b');
    title.textContent = about.title;
    const note = document.createElement('span');
    note.className = 'muted count';
    caption.append(title, ' ', note);
    if (about.legend) caption.append(legend(about.legend));
    const canvas = document.createElement('div');
    canvas.tabIndex = 0;
    canvas.setAttribute('role', 'img');
    figure.append(caption, canvas);
    this.charts.append(figure);

    const panel = { figure, sources: about.sources, words: about.words, last: data[0].at(-1) };
    panel.say = (index) => {
      const at = index ?? panel.plot.data[0].length - 1;
      note.textContent = `step ${panel.plot.data[0][at]}: ${panel.words(panel.plot.data.map((column) => column[at]))}`;
      canvas.setAttribute('aria-label', `${about.title} over steps; ${note.textContent}`);
    };
    panel.plot = new uPlot(options(about, canvas, () => this.restarts(), (index) => panel.say(index)), data, canvas);
    canvas.addEventListener('keydown', (event) => walk(event, panel.plot));
    panel.say(null);
    return panel;
  }

  // Steps where a later attempt took over.
  restarts() {
    return [...document.querySelectorAll('#attempts [data-no]')]
      .filter((row) => row.dataset.no !== '1').map((row) => Number(row.dataset.start)).filter((step) => step > 0);
  }

  fit() {
    for (const { plot, figure } of this.panels.values()) plot.setSize(size(figure));
  }
}

const percent = (share) => (share === null || share === undefined ? '–' : `${Math.round(100 * share)} %`);

function size(figure) {
  return { width: Math.max(200, figure.lastElementChild.clientWidth), height: figure.matches('.loss, .mix') ? 240 : 180 };
}

function legend(names) {
  const list = document.createElement('ul');
  list.className = 'legend';
  names.forEach((name, n) => {
    const item = document.createElement('li');
    item.className = `hue${n % HUES}`;
    item.textContent = name;
    list.append(item);
  });
  const how = document.createElement('li');
  how.className = 'how';
  how.textContent = 'line: shown, dashes: wanted';
  list.append(how);
  return list;
}

function options(about, canvas, restarts, say) {
  const axis = {
    stroke: colour('muted'), font: '11px system-ui, sans-serif', grid: { stroke: colour('line'), width: 1 },
    ticks: { show: false },
  };
  const values = about.share ? (_, ticks) => ticks.map(percent) : (_, ticks) => ticks.map((v) => (v === null ? '' : short(v)));
  return {
    ...size(canvas.parentElement),
    legend: { show: false },
    cursor: { sync: { key: 'job', setSeries: false, scales: ['x', null] }, focus: { prox: -1 }, points: { size: 6 } },
    scales: {
      x: { time: false },
      y: about.log ? { distr: 3 } : about.share ? { range: [0, 1.02] } : {},
    },
    axes: [{ ...axis, size: 28, space: 45, incrs: WHOLE }, { ...axis, size: 48, values, space: 28 }],
    series: [{}, ...about.lines.map((line) => ({
      show: !line.hidden,
      stroke: colour(`hue${line.hue}${line.ghost ? '-ghost' : ''}`),
      fill: line.area ? colour(`hue${line.hue}-area`) : undefined,
      width: line.ghost ? 1 : 1.6,
      dash: line.dashed ? [5, 4] : undefined,
      spanGaps: true,
      paths: about.share ? uPlot.paths.stepped({ align: 1 }) : undefined, // a share holds for its step
      points: { show: (plot) => plot.data[0].length === 1, size: 6 }, // one step has no line
    }))],
    hooks: { setCursor: [(plot) => plot.status && say(plot.cursor.idx)], draw: [(plot) => mark(plot, restarts())] },
  };
}

// Dashed lines where an attempt took over.
function mark(plot, steps) {
  const { ctx } = plot;
  const { left, top, width, height } = plot.bbox;
  ctx.save();
  ctx.strokeStyle = colour('muted');
  ctx.setLineDash([2, 4]);
  for (const step of steps) {
    const x = Math.round(plot.valToPos(step, 'x', true));
    if (x < left || x > left + width) continue;
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, top + height);
    ctx.stroke();
  }
  ctx.restore();
}

// The crosshair by arrow keys, Home and End; Escape takes it away.
function walk(event, plot) {
  const last = plot.data[0].length - 1;
  const at = plot.cursor.idx ?? last;
  const to = {
    ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(last, at + 1), Home: 0, End: last, Escape: null,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const left = to === null ? -10 : plot.valToPos(plot.data[0][to], 'x');
  plot.setCursor({ left, top: to === null ? -10 : plot.bbox.height / devicePixelRatio / 2 }, true, true);
}
