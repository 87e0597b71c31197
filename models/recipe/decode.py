"""Greedy decoding of many rows at once, and word error rate."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, Qwen2AudioForConditionalGeneration

from models.recipe.layout import Layout


@torch.no_grad()
def answer(
    model: Qwen2AudioForConditionalGeneration,
    layout: Layout,
    rows: list[tuple[list[int], bool, str, bool]],
    audio: Tensor | None = None,
    limit: int = 48,
) -> list[str]:
    """Rows of (content, spoken, instruction, audio first) -> text; `audio` (n, width) fills the slots in row order."""
    prompts = [layout.prompt(*row)[0] for row in rows]
    length = max(map(len, prompts))
    ids = torch.full((len(rows), length), layout.pad)
    for i, prompt in enumerate(prompts):  # on the left, so that every row ends where the answer begins
        ids[i, length - len(prompt) :] = torch.tensor(prompt)
    mask = (ids != layout.pad).long()
    embedded = model.get_input_embeddings()(ids)
    if audio is not None:
        embedded = embedded.masked_scatter((ids == layout.audio)[..., None], audio.to(embedded.dtype))
    cache, done, out = DynamicCache(), torch.zeros(len(rows), dtype=torch.bool), []
    for _ in range(limit):
        hidden = model.model.language_model(
            inputs_embeds=embedded, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
        token = model.lm_head(hidden[:, -1]).argmax(-1).masked_fill(done, layout.end)
        done = done | (token == layout.end)
        if done.all():
            break
        out.append(token)
        embedded, mask = model.get_input_embeddings()(token)[:, None], F.pad(mask, (0, 1), value=1)
    columns = torch.stack(out, 1).tolist() if out else [[] for _ in rows]
    return [str(layout.tokenizer.decode([t for t in row if t != layout.end])).strip() for row in columns]


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(hypothesis) + 1))
    for i, a in enumerate(reference):
        diagonal, row[0] = row[0], i + 1
        for j, b in enumerate(hypothesis):
            diagonal, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, diagonal + (a != b))
    return row[-1]


def wer(references: list[str], hypotheses: list[str]) -> float:
    """Corpus word error rate: all edits over all reference words (above 1 when much is inserted)."""
    pairs = [(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True)]
    return sum(edits(r, h) for r, h in pairs) / sum(len(r) for r, _ in pairs)
