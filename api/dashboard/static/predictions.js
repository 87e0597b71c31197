// Predictions row by row: the reference, the answer, what differs; the recording to listen to.

import { answered, marked } from './differences.js';
import { getJson } from './series.js';

const LIMIT = 20;

export class Predictions {
  constructor(section, job) {
    this.section = section;
    this.job = job;
    this.rows = section.querySelector('.rows');
    this.more = section.querySelector('.more');
    this.wrong = section.querySelector('#wrong');
    this.round = 0;
    section.querySelector('.tools').addEventListener('change', () => this.reload());
    this.more.addEventListener('click', () => this.load());
  }

  reload() {
    this.after = null;
    this.round += 1;
    return this.load();
  }

  async load() {
    const { round, after } = this;
    const query = new URLSearchParams({ limit: LIMIT });
    const modality = this.section.querySelector('#modality').value;
    if (modality) query.set('modality', modality);
    if (after !== null) query.set('after', after);
    if (this.wrong.checked) query.set('only', 'wrong');
    let page;
    try {
      page = await getJson(`/v1/jobs/${this.job}/predictions?${query}`);
    } catch (error) {
      if (round !== this.round) return;
      this.rows.replaceChildren();
      this.section.querySelector('.key').hidden = true;
      this.more.hidden = true;
      this.say(`No predictions: ${error.message}`);
      return;
    }
    if (round !== this.round) return; // another choice was made meanwhile
    if (after === null) this.rows.replaceChildren();
    this.rows.append(...page.data.map((row) => this.row(row)));
    this.after = page.last_id;
    this.more.hidden = !page.has_more;
    this.section.querySelector('.tools').hidden = false;
    this.section.querySelector('.key').hidden = !this.rows.querySelector('ins, del');
    this.say(this.rows.childElementCount ? '' : this.wrong.checked ? 'None is wrong.' : 'There are none.');
  }

  say(words) {
    const waiting = this.section.querySelector('.waiting');
    waiting.textContent = words;
    waiting.hidden = !words;
  }

  row(row) {
    const item = element('li', 'prediction');
    const about = element('div', 'line', element('span', 'mono', row.utterance));
    for (const word of [row.language, row.speaker, row.task]) if (word) about.append(element('span', 'muted', word));
    const given = row.valid === false ? readable(row.text) : row.parsed ?? row.text;
    const [wanted, got] = marked(answered(row.reference), answered(given));
    const answer = element('dd', '', ...got);
    if (row.valid === false) answer.append(' ', element('span', 'invalid', 'not a valid answer'));
    const heard = row.heard ? [element('dt', '', 'heard'), element('dd', 'muted', row.heard)] : [];
    const list = element('dl', '', element('dt', '', 'reference'), element('dd', '', ...wanted), element('dt', '', 'answer'), answer, ...heard);
    for (const said of list.querySelectorAll('dd')) said.dir = 'auto'; // Arabic from right to left
    item.append(about, list, this.player(row));
    return item;
  }

  player(row) {
    const audio = document.createElement('audio');
    audio.controls = true;
    audio.preload = 'none';
    audio.setAttribute('aria-label', `Recording of ${row.utterance}`);
    audio.src = `/v1/jobs/${this.job}/audio/${encodeURIComponent(row.utterance)}`;
    audio.addEventListener('error', () => audio.replaceWith(element('span', 'muted', 'The recording is not here.')));
    return audio;
  }
}

// What is no valid answer may still be JSON, and easier to compare as such.
function readable(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}
