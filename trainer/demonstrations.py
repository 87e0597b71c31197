"""Demonstrations: which labelled sentences stand before a query, in training and in a test (light, pure; arXiv
2505.07731, section 3).

Candidates are rows with a transcript; of rows of one task and language that say the same sentence (punctuation and case
apart) the first counts. A query is never shown its own sentence, nor its own recording. Departures: the default is
TF-IDF, which needs no model, and a "perfect match" is the same sentence, not a similarity of 1.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy.sparse

from trainer.metrics.normalise import basic
from trainer.rng import permutation
from trainer.utterance import Utterance

MOST_CANDIDATES = 20_000
"""Sentences of one task and language that are looked through; of more, a seeded sample."""
BLOCK = 256
"""Queries compared with all candidates at once."""

Group = tuple[str, str]
"""Task and language (without region): demonstrations are of the query's."""


class Candidates:
    """The rows that may be shown, by task and language."""

    def __init__(self, rows: Sequence[Utterance], seed: int):
        self.rows = rows
        """As given; demonstrations are named by their place in it."""
        found: dict[Group, dict[str, int]] = defaultdict(dict)
        for n, row in enumerate(rows):
            if row.text and row.label is not None and (sentence := basic(row.text)):
                found[group(row)].setdefault(sentence, n)
        self._sentences: dict[Group, list[str]] = {}
        self._places: dict[Group, list[int]] = {}
        self._at: dict[Group, dict[str, int]] = {}
        self._heard: dict[Group, dict[tuple, int]] = {}
        self._tfidf: dict[Group, TfIdf] = {}
        self._embedded: dict[Group, np.ndarray] = {}
        self._ordered: dict[Group, list[int]] = {}
        self._seed = seed
        for key, places in found.items():
            kept = list(places)
            if len(kept) > MOST_CANDIDATES:
                order = permutation(seed, f"demonstrations/candidates/{'/'.join(key)}", len(kept))
                kept = [kept[k] for k in sorted(order[:MOST_CANDIDATES].tolist())]
            self._sentences[key], self._places[key] = kept, [places[sentence] for sentence in kept]
            self._at[key] = {sentence: n for n, sentence in enumerate(kept)}
            spoken = ((n, rows[k]) for n, k in enumerate(self._places[key]))
            self._heard[key] = {(row.audio, row.offset_s): n for n, row in spoken if row.audio}

    def count(self, query: Utterance) -> int:
        """How many may be shown before a query."""
        return len(self._places.get(group(query), [])) - (self._own(query) is not None)

    def first(self, query: Utterance, count: int) -> list[int]:
        """The first `count` places of one seeded order of all rows that may be shown before a query: nearly the same
        for all of its task and language."""
        key, own = group(query), self._own(query)
        if key not in self._ordered:
            places = set(self._places.get(key, []))
            order = permutation(self._seed, "evaluate.demos", len(self.rows)).tolist()
            self._ordered[key] = [n for n in order if n in places]
        without = None if own is None else self._places[key][own]
        return [n for n in self._ordered[key][: count + 1] if n != without][:count]

    def random(self, query: Utterance, words: Sequence[int], count: int) -> list[int]:
        """`count` places drawn without repetition by as many random words; fewer where there are fewer others."""
        places, own = self._places.get(group(query), []), self._own(query)
        return [places[n] for n in sample(len(places), words[:count], [] if own is None else [own])]

    def nearest(
        self,
        queries: Iterable[Utterance],
        count: int,
        embed: Callable[[Sequence[str]], np.ndarray] | None = None,
        *,
        texts: Sequence[str] | None = None,
    ) -> list[list[int]]:
        """Up to `count` places for every query, the nearest first; of equally near ones the earlier row first. `embed`:
        texts as unit vectors (always the same function), instead of TF-IDF. `texts`: what the queries are looked up by;
        default: their transcripts, and ValueError for a query without one."""
        queries = list(queries)
        out: list[list[int]] = [[] for _ in queries]
        asked: dict[Group, list[int]] = defaultdict(list)
        for n, query in enumerate(queries):
            if texts is None and not query.text:
                raise ValueError(
                    f"utterance {query.id}: no transcript to look demonstrations up by; use retriever: random"
                )
            asked[group(query)].append(n)
        for key, members in asked.items():
            if not (sentences := self._sentences.get(key)):
                continue
            own = [self._own(queries[n]) for n in members]
            said = [(queries[n].text or "") if texts is None else texts[n] for n in members]
            if embed is None:
                if key not in self._tfidf:
                    self._tfidf[key] = TfIdf(sentences)
                near = self._tfidf[key].nearest([basic(text) for text in said], own, count)
            else:
                if key not in self._embedded:
                    self._embedded[key] = embed([self.rows[k].text or "" for k in self._places[key]])
                near = embedded_nearest(self._embedded[key], embed(said), own, count)
            for n, found in zip(members, near, strict=True):
                out[n] = [self._places[key][k] for k in found]
        return out

    def _own(self, query: Utterance) -> int | None:
        """The candidate that says the query's own sentence, or is its recording where that has no transcript."""
        if query.text:
            return self._at.get(group(query), {}).get(basic(query.text))
        return self._heard.get(group(query), {}).get((query.audio, query.offset_s)) if query.audio else None


def group(row: Utterance) -> Group:
    """Task and language of a row."""
    return row.task, row.language.split("-")[0]


def sample(total: int, words: Iterable[int], without: Iterable[int] = ()) -> list[int]:
    """Different numbers below `total`, none of `without`, one for each random word as long as there are any."""
    taken, out = sorted(set(without)), []
    for word in words:
        if len(taken) >= total:
            break
        n = int(word) % (total - len(taken))
        for t in taken:  # rising: the n-th number that is left
            n += n >= t
        out.append(n)
        taken = sorted([*taken, n])
    return out


class TfIdf:
    """Sentences as TF-IDF vectors. Terms are words and character trigrams; weight (1 + ln tf) · (1 + ln((1 + n) /
    (1 + df)))."""

    def __init__(self, sentences: Sequence[str]):
        self._vocabulary: dict[str, int] = {}
        counted = [_terms(s, self._vocabulary, grow=True) for s in sentences]
        df = np.zeros(len(self._vocabulary))
        for terms in counted:
            df[list(terms)] += 1
        self._idf = 1 + np.log((1 + len(sentences)) / (1 + df))
        self._table = _vectors(counted, self._idf).T.tocsr()

    @property
    def vectors(self) -> scipy.sparse.csr_array:
        """Unit rows, shape (sentences, terms)."""
        return self._table.T.tocsr()

    def nearest(self, queries: Sequence[str], own: Sequence[int | None], count: int) -> list[list[int]]:
        """For every query up to `count` sentences by falling cosine, sentence `own` left out. Similarities count to six
        decimals, so that the order does not depend on how sums are rounded."""
        asked = _vectors([_terms(q, self._vocabulary) for q in queries], self._idf)
        return _nearest(lambda block: (asked[block] @ self._table).toarray(), len(queries), own, count)


def embedded_nearest(
    sentences: np.ndarray, queries: np.ndarray, own: Sequence[int | None], count: int
) -> list[list[int]]:
    """The same from unit vectors, each of shape (texts, width)."""
    return _nearest(lambda block: queries[block] @ sentences.T, len(queries), own, count)


def _nearest(
    similar: Callable[[slice], np.ndarray], queries: int, own: Sequence[int | None], count: int
) -> list[list[int]]:
    """Up to `count` sentences for every query by falling similarity; `similar`: that of a block of queries, (queries,
    sentences)."""
    out: list[list[int]] = []
    for first in range(0, queries, BLOCK):
        block = slice(first, first + BLOCK)
        near = np.rint(similar(block).astype(np.float64) * 1e6).astype(np.int64)
        left = near.shape[1]
        for row, skipped in zip(near, own[block], strict=True):
            keys = row * left - np.arange(left)  # all different: ties have one order
            if skipped is not None:
                keys[skipped] = np.iinfo(np.int64).min // 2
            k = min(count, left - (skipped is not None))
            best = np.argpartition(-keys, k - 1)[:k] if k else np.empty(0, dtype=np.int64)
            out.append(best[np.argsort(-keys[best])].tolist())
    return out


def _terms(sentence: str, vocabulary: dict[str, int], *, grow: bool = False) -> dict[int, int]:
    """How often each known term stands in a normalised sentence; `grow` makes unknown ones known."""
    padded, counts = f" {sentence} ", defaultdict(int)
    for term in (*sentence.split(), *(f"#{padded[n : n + 3]}" for n in range(len(padded) - 2))):
        n = vocabulary.setdefault(term, len(vocabulary)) if grow else vocabulary.get(term)
        if n is not None:
            counts[n] += 1
    return counts


def _vectors(counted: Sequence[dict[int, int]], idf: np.ndarray) -> scipy.sparse.csr_array:
    """Unit rows, shape (sentences, terms)."""
    ends = np.cumsum([0, *map(len, counted)])
    columns = np.fromiter((n for terms in counted for n in terms), dtype=np.int64, count=ends[-1])
    times = np.fromiter((c for terms in counted for c in terms.values()), dtype=np.float64, count=ends[-1])
    values = (1 + np.log(times)) * idf[columns]
    norms = np.sqrt(np.add.reduceat(np.append(values**2, 0.0), np.minimum(ends[:-1], len(values))))
    lengths = np.diff(ends)
    values /= np.repeat(norms, lengths)
    return scipy.sparse.csr_array((values, columns, ends), shape=(len(counted), len(idf)))
