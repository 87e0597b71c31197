"""Rows of tokens in Qwen2-Audio's conversation layout, with the places the losses need."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.recipe.text import AUDIO, AUDIO_END, AUDIO_LABEL, AUDIO_START, END, PAD, START, SYSTEM


class Batch(NamedTuple):
    ids: Tensor  # (batch, length), padded on the right
    mask: Tensor
    labels: Tensor  # answer and end of turn (and, where asked, the content); -100 elsewhere
    content: Tensor  # 1 where the content (audio slots or transcript) stands
    first: Tensor  # (batch,) position of the first content token
    slot: Tensor  # (batch,) position whose prediction is the first answer token


class Layout:
    """Token ids of prompts. The free embedding of <|AUDIO|> doubles as "no word here", in frame targets and in
    pseudo-speech; stock code always overwrites that position with an audio vector, so nothing else uses it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._cache = tokenizer, {}
        vocabulary = tokenizer.get_vocab()
        self.pad, self.end = vocabulary[PAD], vocabulary[END]
        self.blank = self.audio = vocabulary[AUDIO]
        self.head = self.ids(f"{START}{SYSTEM}{END}\n{START}user\n")
        self.before, self.after = self.ids(f"{AUDIO_LABEL}{AUDIO_START}"), self.ids(f"{AUDIO_END}\n")
        self.tail, self.newline = self.ids(f"{END}\n{START}assistant\n"), self.ids("\n")

    def ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer(text)["input_ids"]
        return self._cache[text]

    def words(self, text: str) -> list[list[int]]:
        """Pieces of each word as they stand in the sentence (all but the first carry their blank)."""
        return [self.ids(w if i == 0 else f" {w}") for i, w in enumerate(text.split())]

    def prompt(self, content: list[int], spoken: bool, instruction: str, audio_first: bool) -> tuple[list[int], int]:
        """-> tokens up to the answer, position of the first content token."""
        before, after = (self.before, self.after) if spoken else ([], self.newline)
        ask = self.ids(instruction)
        head = self.head if audio_first else self.head + ask + self.newline
        out = [*head, *before, *content, *after, *(ask if audio_first else []), *self.tail]
        return out, len(head) + len(before)

    def pack(self, rows: list[tuple[list[int], bool, str, str | None, bool]], predict: frozenset[int] = frozenset()):
        """Rows of (content, spoken, instruction, answer or None, audio first) -> Batch.

        predict: rows whose content is a target too (plain language modelling).
        """
        tokens, labels, spans, slots = [], [], [], []
        for i, (content, spoken, instruction, answer, audio_first) in enumerate(rows):
            prompt, first = self.prompt(content, spoken, instruction, audio_first)
            target = [] if answer is None else [*self.ids(answer), self.end]
            label = [-100] * len(prompt) + target
            if i in predict:
                label[first : first + len(content)] = content
            tokens.append(prompt + target)
            labels.append(label)
            spans.append((first, len(content)))
            slots.append(len(prompt) - 1)
        length = max(map(len, tokens))
        ids, lab = torch.full((len(rows), length), self.pad), torch.full((len(rows), length), -100)
        mask, content = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length)
        for i, (t, y, (first, n)) in enumerate(zip(tokens, labels, spans, strict=True)):
            ids[i, : len(t)], lab[i, : len(t)], mask[i, : len(t)] = torch.tensor(t), torch.tensor(y), 1
            content[i, first : first + n] = 1
        return Batch(ids, mask, lab, content, torch.tensor([s[0] for s in spans]), torch.tensor(slots))
