// A study: looks again while somebody looks at it; compares anew when more of its jobs have succeeded.

const EVERY_MS = 5000;
const done = () => document.getElementById('study').dataset.done;
let compared = done();

setInterval(() => {
  if (!document.hidden) htmx.trigger('#study', 'refresh');
}, EVERY_MS);

document.addEventListener('htmx:afterSettle', () => {
  if (done() === compared) return;
  compared = done();
  htmx.trigger('#comparison', 'refresh');
});
