// What every page does: times in the reader's zone, copy buttons, addresses without empty parameters.

const inZone = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const today = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium' });
const short = new Intl.DateTimeFormat(undefined, { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' });

function localTimes(root) {
  for (const time of root.querySelectorAll('time[datetime]')) {
    const at = new Date(time.dateTime);
    time.title = inZone.format(at);
    if (!time.classList.contains('age')) {
      time.textContent = (at.toDateString() === new Date().toDateString() ? today : short).format(at);
    }
  }
}

function copyButtons(root) {
  for (const button of root.querySelectorAll('button.copy')) button.hidden = false;
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = 'Copied';
  } catch { // no clipboard outside https and localhost: leave the text selected
    getSelection().selectAllChildren(source);
    button.textContent = 'Selected: press Ctrl C';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 2000);
}

function prepare(root) {
  localTimes(root);
  copyButtons(root);
}

document.documentElement.classList.add('js');
prepare(document);
document.addEventListener('htmx:load', (event) => prepare(event.detail.elt));
document.addEventListener('click', (event) => {
  const button = event.target.closest('button.copy');
  if (button) copy(button);
});
document.addEventListener('htmx:configRequest', ({ detail }) => {
  const given = detail.formData;
  for (const name of new Set(given.keys())) if (given.get(name) === '') given.delete(name);
});
