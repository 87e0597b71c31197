"""Constrained decoding: only tokens that go on to an answer of the task, and that still leave room to end it."""

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from trainer import answers
from trainer.decoding.grammar import Grammar
from trainer.decoding.vocabulary import Vocabulary, vocabulary_of
from trainer.fields import problem
from trainer.spec import Task
from trainer.tokens import DataError


class Automaton(Protocol):
    """Which tokens may follow. A state is a number."""

    start: int

    def edges(self, state: int) -> dict[int, np.ndarray]:
        """The tokens that may be written, by the state that they lead to."""
        ...

    def after(self, state: int, token: int) -> int:
        """The state after an allowed token."""
        ...

    def ends(self, state: int) -> bool:
        """Whether what has been written is an answer."""
        ...

    def need(self, state: int) -> int:
        """Tokens that surely suffice to make an answer of it, the end token not counted."""
        ...


class Trie:
    """Closed answers by their token ids as they are trained on, common beginnings once.

    A state is a node, numbered from the root, which is 0, so that parents have lower numbers. Attributes: `answers`
    (their names, in the order given), `leaves` (where each ends) and, by node, `children` (node by token), `names` (the
    answer that ends there, None where none does), `parents`, `tokens` (the last one) and `depths` (how many there are).
    """

    start = 0

    def __init__(self, closed: dict[str, tuple[int, ...]]):
        self.answers = list(closed)
        self.children: list[dict[int, int]] = [{}]
        self.names: list[str | None] = [None]
        self.parents, self.tokens, self.depths = [0], [0], [0]
        self.leaves: list[int] = []
        for name, ids in closed.items():
            node = 0
            for token in ids:
                if token not in self.children[node]:
                    self.children[node][token] = len(self.children)
                    self.children.append({})
                    self.names.append(None)
                    self.parents.append(node)
                    self.tokens.append(token)
                    self.depths.append(self.depths[node] + 1)
                node = self.children[node][token]
            self.names[node] = name
            self.leaves.append(node)
        self._needs = [0] * len(self.children)
        for node in reversed(range(len(self.children))):
            if self.names[node] is None:
                self._needs[node] = 1 + min(self._needs[n] for n in self.children[node].values())

    def edges(self, state: int) -> dict[int, np.ndarray]:
        return {node: np.array([token]) for token, node in self.children[state].items()}

    def after(self, state: int, token: int) -> int:
        return self.children[state][token]

    def ends(self, state: int) -> bool:
        return self.names[state] is not None

    def need(self, state: int) -> int:
        return self._needs[state]


class Written:
    """The answers of a grammar, in whatever tokens write them."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary):
        self.grammar, self.vocabulary, self.start = grammar, vocabulary, grammar.start
        self.ends = grammar.ends
        self._needs: dict[int, int] = {}

    def edges(self, state: int) -> dict[int, np.ndarray]:
        return self.vocabulary.edges(self.grammar, state)

    def after(self, state: int, token: int) -> int:
        return self.vocabulary.after(self.grammar, state, token)

    def need(self, state: int) -> int:
        if state not in self._needs:
            self._needs[state] = self.vocabulary.fewest(self.grammar.closing(state))
        return self._needs[state]


State = tuple[int, int]
"""Number of an automaton, and its own state."""


class Constraint:
    """What a search asks before every token: `starts`, `after` and `restrict`. Automata: one for all rows, or one for
    each."""

    def __init__(self, automata: Sequence[Automaton], stops: set[int], max_new_tokens: int, task: str):
        self.automata, self.stops = automata, sorted(stops)
        self._edges: dict[State, dict[int, np.ndarray]] = {}
        self._masks: dict[tuple[State, int], torch.Tensor] = {}
        if (need := max(automaton.need(automaton.start) for automaton in automata)) > max_new_tokens:
            message = f"the shortest answer of task {task} takes {need} tokens; give at least as many"
            raise problem("evaluate.decode.max_new_tokens", message, max_new_tokens)

    def starts(self, rows: int) -> list[State]:
        """The state of each row before its first token."""
        every = [(n, automaton.start) for n, automaton in enumerate(self.automata)]
        return every if len(every) > 1 else every * rows

    def after(self, state: State, token: int) -> State:
        """The state after an allowed token."""
        n, own = state
        return n, self.automata[n].after(own, token)

    def restrict(self, scores: torch.Tensor, states: Sequence[State], left: int) -> torch.Tensor:
        """scores (rows, vocabulary) with -inf where a row's state does not allow the token. left: tokens that may
        still be written, this one counted."""
        allowed = torch.stack([self._mask(state, left, scores) for state in states])
        return scores.masked_fill(~allowed, -torch.inf)

    def _mask(self, state: State, left: int, scores: torch.Tensor) -> torch.Tensor:
        automaton, own = self.automata[state[0]], state[1]
        if state not in self._edges:
            self._edges[state] = automaton.edges(own)
        edges = self._edges[state]
        key = (state, min(left, 1 + max((automaton.need(to) for to in edges), default=0)))
        if key not in self._masks:
            mask = torch.zeros(scores.shape[-1], dtype=torch.bool)
            for to, tokens in edges.items():
                if automaton.need(to) < left:
                    mask[torch.from_numpy(tokens)] = True
            if automaton.ends(own):
                mask[self.stops] = True
            self._masks[key] = mask.to(scores.device)
        return self._masks[key]


def constraint_of(tasks: Sequence[Task], model, max_new_tokens: int) -> Constraint | None:
    """What limits the answers to a task, which is given once for all rows, or as it is put to each (`own_task`); None
    where any text is one. SpecError where no answer fits into `max_new_tokens`, BaseError for a tokenizer whose tokens
    are not known as bytes."""
    tokens, task = model.tokens, tasks[0]
    if task.answer == "text":
        return None
    if task.picks_one:
        every = [closed_answers(own, tokens) for own in tasks]
        name, longest = max((item for closed in every for item in closed.items()), key=lambda item: len(item[1]))
        if len(longest) > max_new_tokens:
            message = f"{task.answer} '{name}' of task {task.name} takes {len(longest)} tokens; give at least as many"
            raise problem("evaluate.decode.max_new_tokens", message, max_new_tokens)
        return Constraint([Trie(closed) for closed in every], tokens.stops, max_new_tokens, task.name)
    vocabulary = vocabulary_of(model.folder)
    grammar = Grammar(task, spaced=vocabulary.spaced)
    return Constraint([Written(grammar, vocabulary)], tokens.stops, max_new_tokens, task.name)


def closed_answers(task: Task, tokens) -> dict[str, tuple[int, ...]]:
    """Ids of every label of a task, or choice of one that is put to a row, as they are trained on, the end left out.
    DataError where two have the same."""
    found = {name: tokens.answer_ids(answers.render(name, task))[:-1] for name in task.labels or []}
    if len(set(found.values())) < len(found):
        one, other = next((a, b) for a, b in itertools.combinations(found, 2) if found[a] == found[b])
        raise DataError(f"task {task.name}: {one!r} and {other!r} are the same to the base's tokenizer; reword one")
    return found
