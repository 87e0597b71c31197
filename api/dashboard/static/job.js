// One job, live: one stream of events says when something is new; what is shown is then read anew.

import { Curves } from './curves.js';
import { Predictions } from './predictions.js';
import { getJson, oneAtATime } from './series.js';

const AGAIN_MS = 5000;
const id = document.getElementById('job').dataset.id;
const problem = document.getElementById('problem');
const live = document.getElementById('live');
const curves = new Curves(document.getElementById('curves'), id);
const predictions = new Predictions(document.getElementById('predictions'), id);

// ---------------------------------------------------------------------------------------------------- what is new

const history = document.getElementById('history');
const newest = () => Number(history.querySelector('li[data-seq]')?.dataset.seq ?? 0);
let told = newest(); // the last event that the stream has told of

const showNews = oneAtATime(async () => {
  const target = { target: '#history', swap: 'afterbegin' };
  for (let before = -1; before < newest() && newest() < told;) { // so many at a time; none where the service is away
    before = newest();
    await htmx.ajax('GET', `/dashboard/jobs/${id}/events?since=${before}`, target);
  }
});
const showHead = oneAtATime(async () => htmx.trigger('#job', 'refresh'));

function heard(job) {
  told = Math.max(told, job.seq);
  showNews();
  showHead();
  curves.update();
  if (['succeeded', 'failed', 'cancelled'].includes(job.status)) ended(job.status);
}

// ------------------------------------------------------------------------------------------------------ the stream

let source = null;
let broken = false;

function listen() {
  source = new EventSource(`/v1/jobs/${id}/stream?after=${id}:${newest()}`);
  source.addEventListener('open', () => {
    say('Live');
    if (broken) catchUp();
    broken = false;
  });
  source.addEventListener('progress', (message) => { heard(JSON.parse(message.data)); });
  // steps of an attempt that was cut short no longer count
  source.addEventListener('attempt.training', () => { curves.reload(); });
  // an event of the job may be called so too; a failed connection has no data
  source.addEventListener('error', (message) => { if (message.data === undefined) lost(); });
}

// What was told just before the connection broke could not be read any more.
function catchUp() {
  showNews();
  showHead();
  curves.reload();
}

// The browser tries again by itself where the connection broke, not where the service said no, or something else spoke.
function lost() {
  say('Reconnecting …');
  broken = true;
  if (source?.readyState !== EventSource.CLOSED) return;
  source = null;
  showHead(); // leads to the login where the key is no longer good
  setTimeout(() => { if (source === null && !document.hidden && !over()) listen(); }, AGAIN_MS);
}

function ended(status) {
  source?.close();
  source = null;
  say('');
  curves.reload();
  if (status === 'succeeded') predictions.reload();
}

function say(words) {
  live.textContent = words;
  live.classList.toggle('on', words === 'Live');
}

const over = () => document.getElementById('head').dataset.over === 'yes';

// A browser has few connections to one host: a page that nobody looks at gives its own back.
document.addEventListener('visibilitychange', () => {
  if (document.hidden) {
    source?.close();
    source = null;
  } else if (!over() && source === null) {
    listen();
  }
});

// -------------------------------------------------------------------------------------------------------- commands

async function command(name) {
  try {
    await getJson(`/v1/jobs/${id}/${name}`, { method: 'POST' });
    problem.hidden = true;
  } catch (error) {
    problem.textContent = `Could not ${name} the job: ${error.message}`;
    problem.hidden = false;
  }
  showHead();
}

const sure = document.getElementById('sure');
sure.addEventListener('close', () => { if (sure.returnValue === 'yes') command('cancel'); });
document.addEventListener('click', (event) => {
  const name = event.target.closest('button[data-command]')?.dataset.command;
  if (name === 'cancel') {
    sure.returnValue = 'no';
    sure.showModal();
  } else if (name) {
    command(name);
  }
});

curves.update();
if (document.getElementById('predictions').dataset.there === 'yes') predictions.reload();
if (!over()) listen();
