// The metrics of a job as the JSON API tells them, kept up to date by asking for what is new.

const MANY = 4000; // points after which the server's selection is asked for again

export class Series {
  constructor(job, points, names = []) {
    this.job = job;
    this.points = points;
    this.names = names;
    this.clear();
  }

  clear() {
    this.byName = new Map(); // name -> [steps, values]
    this.step = 0;
  }

  // Fetches the points after the last known one; true where there were any.
  async update() {
    if ([...this.byName.values()].some(([steps]) => steps.length > MANY)) this.clear();
    const query = new URLSearchParams({ points: this.points, after_step: this.step });
    for (const name of this.names) query.append('name', name);
    const found = await getJson(`/v1/jobs/${this.job}/metrics?${query}`);
    let last = this.step;
    for (const [name, points] of Object.entries(found.series)) {
      if (!this.byName.has(name)) this.byName.set(name, [[], []]);
      const [steps, values] = this.byName.get(name);
      for (const [step, value] of points) {
        if (step <= this.step) continue;
        steps.push(step);
        values.push(value);
        last = Math.max(last, step);
      }
    }
    const more = last > this.step;
    this.step = last;
    return more;
  }
}

// Runs `work` now, or once more when it is at it already.
export function oneAtATime(work) {
  let running = false;
  let again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    try {
      while (again) {
        again = false;
        await work();
      }
    } finally {
      running = false;
    }
  };
}

// JSON of the service; an Error with the service's own words, and `status`, where it says no.
export async function getJson(url, options = {}) {
  const response = await fetch(url, { headers: { Accept: 'application/json' }, ...options });
  const body = await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  const error = new Error(body?.error?.message ?? `the service answered ${response.status}`);
  error.status = response.status;
  throw error;
}

// Exponential moving average over steps. Points may be steps apart: what lies between counts as far as it is old.
export function smooth(steps, values, weight) {
  let sum = 0;
  let total = 0;
  let before = steps[0];
  return values.map((value, i) => {
    const kept = weight ** (steps[i] - before);
    before = steps[i];
    sum = sum * (i ? kept : 0) + value;
    total = total * (i ? kept : 0) + 1;
    return sum / total;
  });
}

export function short(value) {
  if (value === null || value === undefined) return '–';
  const rounded = Number(value.toPrecision(3));
  const plain = value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5);
  return plain ? String(rounded) : rounded.toExponential();
}
