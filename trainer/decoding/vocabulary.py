"""A tokenizer's vocabulary as bytes: which tokens may be written where a grammar allows only some strings."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from trainer.bases import BaseError, read_json
from trainer.decoding.grammar import DEAD, Grammar

Piece = tuple[int, bytes]


@lru_cache(maxsize=4)
def vocabulary_of(folder: Path) -> "Vocabulary":
    """The vocabulary of a base folder, read once."""
    return Vocabulary(folder)


class Vocabulary:
    """The ordinary tokens of `tokenizer.json`: neither special nor added ones, which no answer is made of.

    `spaced`: the first word's token writes a space before it, which decoding leaves out.
    """

    def __init__(self, folder: Path):
        file = read_json(folder / "tokenizer.json")
        kinds = set(_types(file.get("decoder")))
        added = {token["id"] for token in file.get("added_tokens") or []}
        vocab = file["model"]["vocab"]
        numbered = vocab.items() if isinstance(vocab, dict) else ((token, n) for n, (token, _) in enumerate(vocab))
        if "ByteLevel" in kinds:
            self.spaced, written = False, _byte_level
        elif kinds & {"ByteFallback", "Metaspace"}:
            self.spaced, written = True, _with_spaces
        else:
            message = "constrained decoding knows byte-level and sentencepiece tokenizers; use constrain: false"
            raise BaseError(f"{folder}: a tokenizer that decodes by {', '.join(sorted(kinds)) or 'nothing'}; {message}")
        pieces = [(id_, written(token)) for token, id_ in numbered if id_ not in added]
        self._bytes = dict(pieces)
        self._tokens = {piece for _, piece in pieces if piece}
        self._longest = max(map(len, self._tokens))
        self._first: dict[int, list[Piece]] = {}
        for id_, piece in pieces:
            if piece:
                self._first.setdefault(piece[0], []).append((id_, piece))
        plain = {id_ for id_, piece in pieces if _plain(piece)}
        self._plain = np.array(sorted(plain))
        self._other = [(id_, piece) for id_, piece in pieces if piece and id_ not in plain]

    def after(self, grammar: Grammar, state: int, token: int) -> int:
        """The grammar's state after one more token; DEAD where it may not be written."""
        return self._read(grammar, state, self._bytes.get(token) or b"\xff")

    def edges(self, grammar: Grammar, state: int) -> dict[int, np.ndarray]:
        """The tokens that may be written, by the state that they lead to."""
        found: dict[int, list[int]] = {}
        for id_, piece in self._candidates(grammar, state):
            if (to := self._read(grammar, state, piece)) != DEAD:
                found.setdefault(to, []).append(id_)
        edges = {to: np.array(ids) for to, ids in found.items()}
        if grammar.in_text(state):  # in an open string most tokens are plain characters, which change nothing
            edges[state] = np.concatenate([self._plain, edges.get(state, self._plain[:0])])
        return edges

    def fewest(self, text: bytes) -> int:
        """The fewest tokens that write `text`. BaseError where none do."""
        need = [0] + [len(text) + 1] * len(text)
        for end in range(1, len(text) + 1):
            for start in range(max(0, end - self._longest), end):
                if need[start] + 1 < need[end] and text[start:end] in self._tokens:
                    need[end] = need[start] + 1
        if need[-1] > len(text):
            raise BaseError(f"the tokenizer cannot write {text.decode(errors='replace')!r}")
        return need[-1]

    def _candidates(self, grammar: Grammar, state: int) -> Iterator[Piece]:
        if grammar.in_text(state):
            yield from self._other
            return
        for byte, pieces in self._first.items():
            if grammar.step(state, byte) != DEAD:
                yield from pieces

    @staticmethod
    def _read(grammar: Grammar, state: int, piece: bytes) -> int:
        for byte in piece:
            state = grammar.step(state, byte)
            if state == DEAD:
                break
        return state


def _plain(piece: bytes) -> bool:
    """Whether a token is whole characters that a JSON string holds as they are."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return bool(piece) and min(piece) >= 0x20 and b'"' not in piece and b"\\" not in piece


def _types(decoder: dict | None) -> Iterator[str]:
    if decoder:
        yield decoder["type"]
        for part in decoder.get("decoders", []):
            yield from _types(part)


def _byte_level(token: str) -> bytes:
    """Byte-level BPE writes every byte as one visible character: printable Latin-1 as itself, the rest from 256 on."""
    return bytes(_BYTE_OF[c] for c in token)


def _with_spaces(token: str) -> bytes:
    """Sentencepiece writes a space as U+2581, and a byte that is no token of its own as <0x0A>."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [b for b in range(0x100) if b not in _SHOWN]
_BYTE_OF = {chr(b): b for b in _SHOWN} | {chr(0x100 + n): b for n, b in enumerate(_HIDDEN)}
