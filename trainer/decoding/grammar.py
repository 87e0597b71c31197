"""What a task allows as an answer, byte by byte: exactly the strings that `trainer.answers.render` can write.

A state is the set of ways in which what has been written can go on; each way is a stack of items, the next first.
States are numbered as they are met, so that a transition is looked up the second time.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

from trainer.answers import SET_SEPARATOR
from trainer.spec import Task


class Text(NamedTuple):
    """An open JSON string up to and with its closing quote. It begins with no space and is not empty."""

    filled: bool = False
    pending: bytes = b""
    """The first bytes of a character."""
    escaped: bool = False


class Slots(NamedTuple):
    """The rest of a JSON object of slots, its closing brace left out."""

    left: tuple[str, ...]
    """Slot types that may still come."""
    first: bool


class Value(NamedTuple):
    """What a slot holds: a value, or a list of several."""

    slot: str


class More(NamedTuple):
    """The rest of a list of values of a slot, and its bracket."""

    slot: str


class Names(NamedTuple):
    """The rest of a set of labels, in menu order."""

    at: int
    first: bool


Item = bytes | Text | Slots | Value | More | Names
Way = tuple[Item, ...]
DEAD = -1


class Grammar:
    """The answers of a task of the form json or label_set. `spaced`: one space may precede the answer (a tokenizer
    that writes it with the first word)."""

    def __init__(self, task: Task, *, spaced: bool = False):
        self.task = task
        self._numbers: dict[frozenset[Way], int] = {}
        self._ways: list[frozenset[Way]] = []
        self._steps: dict[tuple[int, int], int] = {}
        start = [(lead, *way) for way in self._answers() for lead in ([b"", b" "] if spaced else [b""])]
        self.start = self._number(frozenset(flat for way in start for flat in self._open(way)))

    def step(self, state: int, byte: int) -> int:
        """The state after one more byte; DEAD where no answer goes on like this."""
        found = self._steps.get((state, byte))
        if found is None:
            ways = {flat for way in self._ways[state] for after in _after(way, byte) for flat in self._open(after)}
            found = self._steps[state, byte] = self._number(frozenset(ways)) if ways else DEAD
        return found

    def ends(self, state: int) -> bool:
        """Whether what has been written is an answer."""
        return () in self._ways[state]

    def in_text(self, state: int) -> bool:
        """Whether an open string is being written, has begun, and may go on with any character."""
        return {way[:1] for way in self._ways[state]} == {(Text(filled=True),)}

    def closing(self, state: int) -> bytes:
        """The shortest way to an answer from here, of equally short ones the first in order: after its first bytes the
        rest of it is the shortest way."""
        return min((self._shortest(way) for way in self._ways[state]), key=lambda c: (len(c), c))

    def _number(self, ways: frozenset[Way]) -> int:
        if ways not in self._numbers:
            self._numbers[ways] = len(self._ways)
            self._ways.append(ways)
        return self._numbers[ways]

    # ---- what a task allows

    def _answers(self) -> list[Way]:
        task = self.task
        if task.answer == "label_set":
            return [(Names(0, True),)]
        slots: Way = (b'"slots": {', Slots(tuple(task.slots), True), b"}") if task.slots is not None else ()
        following: Way = (b", ", *slots) if slots else ()
        ways: list[Way] = [(b'{"intent": ', *name, *following, b"}") for name in _values(task.intents)]
        return ways if task.intents is not None else [*ways, (b"{", *slots, b"}")]

    def _open(self, way: Way) -> Iterator[Way]:
        """The ways that a way stands for, each empty or with bytes or Text first."""
        if not way or isinstance(way[0], Text) or (isinstance(way[0], bytes) and way[0]):
            yield way
            return
        head, rest = way[0], way[1:]
        for more in self._expanded(head):
            yield from self._open((*more, *rest))

    def _expanded(self, head: Item) -> Iterator[Way]:
        match head:
            case Names(at, first):
                labels = self.task.labels or []
                if not first:
                    yield ()
                for n in range(at, len(labels)):
                    yield ((b"" if first else SET_SEPARATOR.encode()) + labels[n].encode(), Names(n + 1, False))
            case Slots(left, first):
                yield ()
                for n, name in enumerate(left):
                    in_order = self.task.slot_order == "schema"
                    others = left[n + 1 :] if in_order else left[:n] + left[n + 1 :]
                    key = (b"" if first else b", ") + json.dumps(name, ensure_ascii=False).encode() + b": "
                    if self.task.slots[name] != []:  # type: ignore[index]  # of no value at all
                        yield (key, Value(name), Slots(others, False))
            case Value(name):
                for value in self._of_slot(name):
                    yield value
                    yield (b"[", *value, More(name))
            case More(name):
                for value in self._of_slot(name):
                    yield (b", ", *value, b"]")
                    yield (b", ", *value, More(name))
            case _:
                yield ()

    def _of_slot(self, name: str) -> list[Way]:
        return _values((self.task.slots or {})[name])

    def _shortest(self, way: Way) -> bytes:
        return b"".join(self._least(item) for item in way)

    def _least(self, item: Item) -> bytes:
        match item:
            case bytes():
                return item
            case Text():
                return _completed(item)
            case Slots() | Names(first=False):
                return b""
            case _:  # of a list its last value, of a set one label: longer ones go on as these do
                ways = [w for w in self._expanded(item) if not isinstance(w[-1], More)]
                return min((self._shortest(w) for w in ways), key=lambda c: (len(c), c))


def _values(closed: list[str] | None) -> list[Way]:
    """JSON strings: those of a closed set, or any."""
    if closed is None:
        return [(b'"', Text())]
    return [(json.dumps(name, ensure_ascii=False).encode(),) for name in closed]


def _after(way: Way, byte: int) -> Iterator[Way]:
    """What is left of a way after one byte: nothing where it does not fit."""
    if not way:
        return
    head, rest = way[0], way[1:]
    if isinstance(head, bytes):
        if head[0] == byte:
            yield (head[1:], *rest) if len(head) > 1 else rest
    elif isinstance(head, Text):
        if head.filled and not head.pending and not head.escaped and byte == ord('"'):
            yield rest
        elif (text := _written(head, byte)) is not None:
            yield (text, *rest)


def _written(text: Text, byte: int) -> Text | None:
    """An open string after one byte that does not close it; None where JSON or UTF-8 does not allow it."""
    if text.escaped:  # \u is left out: it could write half of a character
        allowed = b'"\\/bfnrt' if text.filled else b'"\\/'
        return Text(True) if byte in allowed else None
    if not text.pending and byte == ord("\\"):
        return text._replace(escaped=True)
    if not text.pending and (byte < 0x20 or byte == ord('"')):
        return None
    character = _character(text.pending + bytes([byte]))
    if character is None:
        return None
    if not character:
        return text._replace(pending=text.pending + bytes([byte]))
    return None if character.isspace() and not text.filled else Text(True)


def _character(encoded: bytes) -> str | None:
    """The character that UTF-8 bytes write; '' while more must come, None where none does."""
    try:
        return encoded.decode()
    except UnicodeDecodeError as error:
        return "" if error.reason == "unexpected end of data" else None


def _completed(text: Text) -> bytes:
    """The shortest end of an open string, the first in order."""
    if text.escaped:
        return b'""'
    if not text.pending:
        return b'"' if text.filled else b'!"'
    end = b""
    while True:  # the least byte that leads on, until a character is whole
        for byte in range(0x80, 0xC0):
            longer = end + bytes([byte])
            character = _character(text.pending + longer)
            if character and (text.filled or not character.isspace()):
                return longer + b'"'
            if character == "":
                end = longer
                break
