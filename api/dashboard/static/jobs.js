// The list of jobs: looks again every few seconds while somebody looks at it.

const EVERY_MS = 3000;

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
