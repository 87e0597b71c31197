// The list of jobs: looks again every few seconds while somebody looks at it; a small curve of each job's loss.

import { Series } from './series.js';

const EVERY_MS = 3000;
const WIDTH = 100;
const HEIGHT = 24;
const drawn = new Map(); // job -> {series, step, attempts}

async function draw(cell) {
  const { job, step, attempts } = cell.dataset;
  const svg = cell.querySelector('svg');
  if (!svg) return;
  let known = drawn.get(job);
  if (!known || known.attempts !== attempts) {
    known = { series: new Series(job, 100, ['loss']), attempts, step: null };
    drawn.set(job, known);
  }
  if (known.step === step && svg.firstElementChild.getAttribute('points')) return;
  known.step = step;
  await known.series.update();
  const [steps, values] = known.series.byName.get('loss') ?? [[], []];
  if (steps.length < 2) return;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [first, last] = [steps[0], steps[steps.length - 1]];
  const x = (s) => (WIDTH * (s - first)) / (last - first);
  const y = (v) => 2 + (HEIGHT - 4) * (high > low ? (high - v) / (high - low) : 0.5);
  const points = steps.map((s, i) => `${x(s).toFixed(1)},${y(values[i]).toFixed(1)}`).join(' ');
  document.getElementById(svg.id)?.firstElementChild.setAttribute('points', points);
}

function drawAll() {
  for (const cell of document.querySelectorAll('td.loss')) draw(cell).catch(() => {});
}

drawAll();
document.addEventListener('htmx:afterSettle', drawAll);
setInterval(() => {
  if (!document.hidden) htmx.trigger('#jobs', 'refresh');
}, EVERY_MS);

// A list that has not changed stays: a selection or an open menu in it is not lost.
let shown = null;
document.addEventListener('htmx:beforeSwap', ({ detail }) => {
  if (detail.requestConfig.triggeringEvent?.type !== 'refresh') {
    shown = null;
    return;
  }
  if (detail.serverResponse === shown) detail.shouldSwap = false;
  shown = detail.serverResponse;
});
