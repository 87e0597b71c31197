"""What the base learns from: recognition, tasks, and agreement of speech with text inside the language model.

Every row is read twice: with the audio (or pseudo-speech) and with its transcript in the audio's place.
    phone  cross-entropy of the encoder's 25 Hz states with the synthesiser's phones
    frame  cross-entropy of audio vector x word embedding with the piece that stands there, or blank
    ask    the task's answer after speech;  text  the same after text, and plain language modelling
    token  1 - cosine of an audio vector's state with the state of the piece it carries, over all layers
    slot   the same at the position that predicts the answer
    kl     text-conditioned answer distribution (detached) onto the speech-conditioned one
    nce    InfoNCE of pooled contents, both directions, in the batch
    probe  one task that only ever is answered from text
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2AudioForConditionalGeneration

from models.recipe.corpus import Corpus, collate, frame_targets, interleave, place
from models.recipe.layout import Layout
from models.recipe.model import WIDTH, audio_vectors, embedding, encode, lm_states
from models.recipe.tasks import PROBE, PROMPTS, TRANSCRIBE, Tasks

Content = tuple[list[int], list[int], list[tuple[int, int]]]  # ids, audio vectors used, (piece number, position)


class Losses(nn.Module):
    def __init__(self, model: Qwen2AudioForConditionalGeneration, layout: Layout, tasks: Tasks, phones: list[str]):
        super().__init__()
        self.model, self.phone = model, nn.Linear(WIDTH, len(phones))
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.layout, self.tasks, self.silence = layout, tasks, phones.index("_")

    def forward(self, stage: dict, corpus: Corpus, rows: np.ndarray, rng: random.Random) -> dict[str, Tensor]:
        """The stage's terms on these corpus rows (unweighted)."""
        terms: dict[str, Tensor] = {}
        pseudo = round(len(rows) * stage["pseudo"])
        spoken = rows[pseudo:]
        copied = [rng.random() < stage.get("copy", 0) for _ in range(pseudo)]
        texts = [self._reworded(corpus, k, c, rng) for k, c in zip(rows, copied, strict=False)]
        contents = [self._pseudo(text, rng) for text in texts]
        languages = [corpus.language[k] for k in rows]
        audio = None
        if len(spoken):
            vectors, clips = self._hear(stage, corpus, spoken, rng, terms)
            if "ask" not in stage:
                return terms
            texts += [corpus.text[k] for k in spoken]
            heard = [self._spoken(clip, corpus.text[k], stage, rng) for clip, k in zip(clips, spoken, strict=True)]
            audio = torch.cat([vectors[i, c[1]] for i, c in enumerate(heard)])
            contents += heard
        copied += [False] * len(spoken)
        asks = [
            (TRANSCRIBE, text) if copy else self.tasks.ask(language, text, rng)
            for copy, language, text in zip(copied, languages, texts, strict=True)
        ]
        self._agree(contents, texts, languages, asks, audio, rng, terms)
        if rng.random() < 0.5:
            terms["probe"] = self._probe(rng)
        else:
            terms["probe"] = self.scale.detach() * 0
        return terms

    def _hear(self, stage: dict, corpus: Corpus, rows: np.ndarray, rng: random.Random, terms: dict):
        layout, vary = self.layout, np.random.default_rng(rng.getrandbits(64))
        clips = [corpus.clip(int(k), self.silence, vary if vary.random() < stage["vary"] else None) for k in rows]
        mel, frames, phones = collate(clips)
        states, vectors = encode(self.model, mel, frames)
        terms["phone"] = F.cross_entropy(self.phone(states).float().flatten(0, 1), phones.flatten(), ignore_index=-100)
        words = embedding(self.model)
        # the embeddings move together with the language model, never for the encoder alone
        logits = F.linear(vectors * self.scale, words if "ask" in stage else words.detach()).float()
        count, target = audio_vectors(frames), torch.full(logits.shape[:2], -100)
        pieces = [layout.words(corpus.text[k]) for k in rows]
        for i, clip in enumerate(clips):
            target[i, : count[i]] = torch.tensor(frame_targets(clip, pieces[i], layout.blank))
        terms["frame"] = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
        return vectors, clips

    def _spoken(self, clip, text: str, stage: dict, rng: random.Random) -> Content:
        words = self.layout.words(text)
        if len(words) > 1 and rng.random() < stage["mix"]:
            written = [rng.random() < 0.5]
            for _ in words[1:]:
                written.append(written[-1] ^ (rng.random() < 0.4))
            if not all(written):
                return interleave(clip, words, written, self.layout.audio)
        count = int(audio_vectors(len(clip.mel)))
        pairs = [(j, p) for j, p in enumerate(place(clip, words)) if p >= 0]
        return [self.layout.audio] * count, list(range(count)), pairs

    def _reworded(self, corpus: Corpus, k: int, copied: bool, rng: random.Random) -> str:
        """Text for pseudo-speech: often shuffled or of random words, so that copying is learnt, not sentences."""
        text, draw = corpus.text[k], rng.random()
        if copied or draw < 0.15:
            words = self.tasks.words[corpus.language[k]]
            return " ".join(rng.choice(words) for _ in range(rng.randint(1, 6)))
        return " ".join(rng.sample(text.split(), len(text.split()))) if draw < 0.4 else text

    def _pseudo(self, text: str, rng: random.Random) -> Content:
        """The text stretched with blanks to look like 12.5 Hz speech."""
        blank, ids, pairs = self.layout.blank, [], []
        ids += [blank] * rng.choice((0, 1, 2, 8))
        for j, piece in enumerate(p for w in self.layout.words(text) for p in w):
            ids += [blank] * rng.choice((0, 0, 1, 1, 2, 3))
            pairs.append((j, len(ids)))
            ids.append(piece if rng.random() > 0.04 else rng.randrange(6, len(self.layout.tokenizer)))
            ids += [ids[-1]] * (rng.random() < 0.1)
            ids += [blank] * rng.choice((0, 1, 1))
        return ids + [blank] * rng.choice((0, 0, 2, 6)), [], pairs

    def _agree(self, contents: list[Content], texts, languages, asks, audio: Tensor | None, rng, terms) -> None:
        model, layout, tasks = self.model, self.layout, self.tasks
        orders = [rng.random() < 0.6 for _ in asks]
        plain = [layout.ids(text) for text in texts]
        known = [row in tasks.row for row in zip(languages, texts, strict=True)]
        modelled = frozenset(i for i, k in enumerate(known) if k and rng.random() < 0.5)
        a = layout.pack([(c[0], True, *q, o) for c, q, o in zip(contents, asks, orders, strict=True)])
        b = layout.pack([(t, False, *q, o) for t, q, o in zip(plain, asks, orders, strict=True)], modelled)
        # pseudo-speech writes words into the audio slots; blanks there keep their own embedding
        hs, ht = self._states_with(a, contents, audio), lm_states(model, b.ids, b.mask)

        steps = [1 if answer is None else len(layout.ids(answer)) + 1 for _, answer in asks]
        row = torch.repeat_interleave(torch.arange(len(asks)), torch.tensor(steps))
        off = torch.cat([torch.arange(n) for n in steps])
        ls = model.lm_head(hs[-1][row, a.slot[row] + off]).float()
        lt = model.lm_head(ht[-1][row, b.slot[row] + off]).float()
        target = F.pad(b.labels, (0, 1), value=-100)[row, b.slot[row] + off + 1]
        terms["ask"] = F.cross_entropy(ls, target, ignore_index=-100)
        terms["text"] = F.cross_entropy(lt, target, ignore_index=-100)
        shifted = b.labels[:, 1:]
        content = shifted.masked_fill(torch.arange(1, b.ids.shape[1]) > b.slot[:, None], -100)
        if (content != -100).any():
            logits = model.lm_head(ht[-1][:, :-1][content != -100]).float()
            terms["text"] = terms["text"] + 0.3 * F.cross_entropy(logits, content[content != -100])
        terms["kl"] = F.kl_div(
            ls.log_softmax(-1), lt.detach().log_softmax(-1), log_target=True, reduction="batchmean"
        )

        every, layers = torch.arange(len(asks)), range(1, len(hs))
        terms["slot"] = sum(_distance(hs[n][every, a.slot], ht[n][every, b.slot]) for n in layers) / len(layers)
        r, j, p = torch.tensor([(i, j, p) for i, c in enumerate(contents) for j, p in c[2]]).T
        pa, pb = a.first[r] + p, b.first[r] + j
        terms["token"] = sum(_distance(h[r, pa], t[r, pb]) for h, t in zip(hs, ht, strict=True)) / len(hs)
        same = torch.tensor([[x == y and i != k for k, y in enumerate(texts)] for i, x in enumerate(texts)])
        nce = torch.zeros(())
        for n in layers:
            u, v = (F.normalize(_pool(h[n].float(), batch.content), dim=-1) for h, batch in ((hs, a), (ht, b)))
            near = (u @ v.T / 0.1).masked_fill(same, -1e4)
            nce = nce + (F.cross_entropy(near, every) + F.cross_entropy(near.T, every)) / 2 / len(layers)
        terms["nce"] = nce

    def _states_with(self, a, contents: list[Content], audio: Tensor | None):
        """Language-model states of the spoken view: audio vectors go to the slots of rows that have audio."""
        if audio is None:
            return lm_states(self.model, a.ids, a.mask)
        embedded = self.model.get_input_embeddings()(a.ids)
        heard = torch.tensor([bool(c[1]) for c in contents])[:, None]
        slots = (a.ids == self.layout.audio) & heard
        embedded = embedded.masked_scatter(slots[..., None], audio.to(embedded.dtype))
        lm = self.model.model.language_model
        out = lm(inputs_embeds=embedded, attention_mask=a.mask, use_cache=False, output_hidden_states=True)
        return out.hidden_states

    def _probe(self, rng: random.Random, count: int = 6) -> Tensor:
        """The held-out task, answered from text only."""
        rows = []
        while len(rows) < count:
            language = rng.choice(list(self.tasks.sentences))
            text = rng.choice(self.tasks.sentences[language])
            answer = self.tasks.answer(PROBE, language, text)
            if answer is not None:
                rows.append((self.layout.ids(text), False, PROMPTS[PROBE], answer, rng.random() < 0.6))
        batch = self.layout.pack(rows)
        hidden, target = lm_states(self.model, batch.ids, batch.mask)[-1][:, :-1], batch.labels[:, 1:]
        return F.cross_entropy(self.model.lm_head(hidden[target != -100]).float(), target[target != -100])


def _distance(speech: Tensor, text: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(speech.float(), text.float().detach(), dim=-1)).mean()


def _pool(states: Tensor, content: Tensor) -> Tensor:
    return (states * content[..., None]).sum(1) / content.sum(1, keepdim=True)
