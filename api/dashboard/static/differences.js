// Two answers side by side: which parts the other does not have.

// An answer as parts that are compared as wholes: words of a text; names of a set and slots, whose order says nothing.
export function answered(answer) {
  if (answer === null || answer === undefined || answer === '') return { parts: [], joint: ' ' };
  if (Array.isArray(answer)) return { parts: answer.map(String).sort(), joint: ', ' };
  if (typeof answer !== 'object') return { parts: String(answer).split(/\s+/).filter(Boolean), joint: ' ' };
  const slots = Array.isArray(answer.slots)
    ? answer.slots.map(({ type, value }) => `${type} = ${value}`)
    : Object.entries(answer.slots ?? {}).map(([type, value]) => `${type} = ${value}`);
  return { parts: [...(answer.intent ? [answer.intent] : []), ...slots.sort()], joint: ' · ' };
}

const plain = (part) => part.toLocaleLowerCase().replace(/^\p{P}+|\p{P}+$/gu, '');
const same = (a, b) => plain(a) === plain(b);

// Nodes for both, with the edits that would make the answer right: <ins> for what it lacks, <del> for what it has beyond.
export function marked(reference, given) {
  const kept = common(reference.parts, given.parts);
  return [
    nodes(reference, (i) => kept.some(([a]) => a === i), 'ins'),
    nodes(given, (i) => kept.some(([, b]) => b === i), 'del'),
  ];
}

function nodes({ parts, joint }, isKept, tag) {
  if (!parts.length) {
    const nothing = document.createElement('i');
    nothing.textContent = 'nothing';
    return [nothing];
  }
  return parts.flatMap((part, i) => {
    let node = document.createTextNode(part);
    if (!isKept(i)) {
      node = document.createElement(tag);
      node.textContent = part;
    }
    return i ? [joint, node] : [node];
  });
}

// Pairs of places of a longest common subsequence.
function common(a, b) {
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = same(a[i], b[j]) ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const pairs = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (same(a[i], b[j])) pairs.push([i++, j++]);
    else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return pairs;
}
