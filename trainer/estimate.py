"""What a job would do, without doing it: counts, audio, tokens, time, memory, what the test set can show (light)."""

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trainer.compare import smallest_detectable
from trainer.corpus import Corpus
from trainer.formats import FORMATS
from trainer.resolve import Resolved
from trainer.rng import permutation
from trainer.source_rows import SourceRows
from trainer.stage import Interleaved, Labels, cumulative
from trainer.strategies import LinearProbe, Majority
from trainer.tokens import BaseError, Tokens, demonstration, locate_base

COUNTED_ROWS = 20_000
"""Rows of a source whose tokens are counted one by one; of a larger source a seeded sample of this size."""
COUNTED_DEMONSTRATIONS = 1000
"""Rows whose length as a demonstration is counted."""
GPU_FLOPS = 300e12
"""Useful FLOP/s of a LoRA step on one H200: between plain HF (370e12 at full sequences) and short batches."""
FRAMES = 50
"""Positions of an encoder per second of audio, as Whisper's."""
CPU_SHARE = 0.25
"""Share of this machine's matrix-product rate that a small model's step reaches."""
GPU_BYTES, CPU_BYTES = 2.4e12, 10e9
"""Bytes of weights that a token of a generated answer reads per second: half of an H200's bandwidth, a desktop's."""
TOGETHER = 32
"""Answers that are generated in one batch, about."""
ACTIVATION_BYTES = 16
"""Saved activation values per token, layer and hidden unit (about 26, LoRAFusion) less what bf16 halves."""


@dataclass
class SourceEstimate:
    """One source over all stages."""

    modality: str
    rows: int
    available: int
    presentations: int
    times_shown: float
    """Mean presentations per usable row."""
    audio_s: float
    """Seconds of audio presented (repeats counted)."""
    tokens: int | None
    """Language-model tokens presented; None where the base's tokenizer is not at hand."""
    exact: bool
    """Whether every row was counted (else a sample)."""


@dataclass
class Estimate:
    """The answer of `attune plan`."""

    steps: int
    examples: int
    sources: dict[str, SourceEstimate]
    test_utterances: int
    test_speakers: int
    smallest_difference: float
    """Smallest true difference of the main metric (an accuracy near 50–80 %) that the test set would show with
    80 % power at 5 %."""
    parameters: dict[str, int] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Rough training time by device."""
    answering_s: dict[str, float] = field(default_factory=dict)
    """Rough time of answering the test by device, in every modality that is scored; without dev set and guards."""
    memory_gib: dict[str, float] = field(default_factory=dict)
    """Rough peak memory by device."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def estimate(resolved: Resolved, corpus: Corpus) -> Estimate:
    """Count what the plan would present. Row-level problems (too long, no label) raise as training would."""
    batch, notes = resolved.spec.global_batch, []
    tokens: Tokens | None = None
    try:
        folder = locate_base(resolved.spec.base, resolved.spec.revision, weights=False)
        tokens = Tokens(folder, resolved.spec.encoder_window)
    except BaseError as error:
        notes.append(f"tokens, time and memory unknown: {error}")
    sources = {}
    for name, pin in resolved.sources.items():
        shown = sum(
            round(float(cumulative(stage.mix[name], stage.steps * batch)[-1]))  # type: ignore[index]
            for stage in resolved.stages
            if name in stage.mix
        )
        trims = resolved.spec.data.trim_silence == "on"
        sources[name] = _source(corpus.sources[name], pin.modality, shown, corpus.tasks, tokens, trims)
        sources[name].exact &= not any(stage.picks for stage in resolved.stages)  # rows are not all shown alike
    if resolved.spec.data.trim_silence == "on":
        notes.append("silence at the ends is cut when a recording is read: audio and tokens are upper bounds")
    test = corpus.test
    assert test is not None
    count = min(len(test.rows), resolved.spec.evaluate.limit or len(test.rows))
    speakers = {u.speaker for u in test.rows}
    blocks = min(count, len(speakers)) if None not in speakers else count
    smallest = 1.0
    if blocks >= 2:
        smallest = smallest_detectable(count, blocks, 0.7)
    else:
        notes.append("one test speaker: no difference can be shown to hold for others")
    if tokens is not None and resolved.spec.data.trim_silence != "on":
        for u in test.rows:  # too long a test recording is refused here as it is before training
            if u.audio and u.duration_s:
                tokens.audio_tokens(round(u.duration_s * tokens.shape.sampling_rate), name=u.id)
    if None in speakers:
        notes.append("test speakers unknown: utterances are taken as independent, so the real limit is higher")
    found = Estimate(
        steps=resolved.steps,
        examples=resolved.steps * batch,
        sources=sources,
        test_utterances=count,
        test_speakers=0 if None in speakers else blocks,
        smallest_difference=smallest,
        notes=notes,
    )
    for stage in (s for s in resolved.stages if isinstance(s.view, Interleaved)):
        for name in stage.mix:
            sources[name].exact = False
        notes.append(f"stage {stage.name} shows running text; its tokens are counted as if its rows were asked")
    if tokens is not None:
        _add_demonstrations(found, resolved, corpus, tokens)
    if isinstance(resolved.spec.recipe, Majority):
        found.notes.append("counts labels: needs no model, and no time to speak of")
    elif tokens is not None:
        _cost(found, resolved, corpus, tokens)
    return found


def _add_demonstrations(found: Estimate, resolved: Resolved, corpus: Corpus, tokens: Tokens) -> None:
    """Adds what demonstrations cost, by the mean over a sample of the rows that may be shown; other names for labels
    are taken to be as long as the real ones."""
    asking = [s for s in resolved.stages if isinstance(s.view, Labels) and s.view.demonstrations.most]
    rows = [u for name in resolved.sources for u in corpus.sources[name].rows if u.text and u.label is not None]
    if not asking or not rows:
        return
    sample = [rows[i] for i in permutation(0, "estimate", len(rows))[:COUNTED_DEMONSTRATIONS]]
    shown = [demonstration(u, corpus.tasks[u.task]) for u in sample]
    each = statistics.fmean(len(tokens.tokenizer.ids(f"{text}\n")) for text in shown)
    for stage in asking:
        assert isinstance(stage.view, Labels)
        ask = stage.view.demonstrations
        for name, curve in stage.mix.items():
            source = found.sources[name]
            times = float(cumulative(curve, stage.steps * resolved.spec.global_batch)[-1])
            source.tokens = round((source.tokens or 0) + times * each * (ask.least + ask.most) / 2)
            source.exact = False
    found.notes.append(f"demonstrations are counted as {each:.0f} tokens each, the mean of a sample")


def _source(
    source: SourceRows, modality: str, shown: int, tasks: Mapping, tokens: Tokens | None, trims: bool
) -> SourceEstimate:
    rows, exact = source.rows, True
    if trims and modality == "speech" and tokens is not None:  # what is left after trimming is not known yet
        window = tokens.shape.window_samples / tokens.shape.sampling_rate
        rows, exact = [replace(u, duration_s=min(u.duration_s or window, window)) for u in rows], False
    if len(rows) > COUNTED_ROWS:
        rows, exact = [rows[i] for i in permutation(0, "estimate", len(rows))[:COUNTED_ROWS]], False
    view = "speech" if modality == "speech" else "text"
    mean_tokens = None
    if tokens is not None:
        mean_tokens = statistics.fmean(sum(tokens.count(u, tasks[u.task], view)[:2]) for u in rows)
    audio = statistics.fmean(u.duration_s or 0.0 for u in rows) if modality == "speech" else 0.0
    return SourceEstimate(
        modality=modality,
        rows=len(source.rows),
        available=source.available,
        presentations=shown,
        times_shown=round(shown / len(source.rows), 2),
        audio_s=round(audio * shown, 1),
        tokens=None if mean_tokens is None else round(mean_tokens * shown),
        exact=exact,
    )


def _cost(found: Estimate, resolved: Resolved, corpus: Corpus, tokens: Tokens) -> None:
    """Rough time and memory from parameter counts: 4N FLOPs per token under LoRA, 6N under full tuning, 2N forward."""
    config = json.loads((Path(locate_base(resolved.spec.base, weights=False)) / "config.json").read_text())
    lm, met, encoder = parameters(tokens.family, config)
    found.parameters = {"language_model": lm, "encoder": encoder}
    full = resolved.spec.tuning.method == "full"
    trains_encoder = any(stage.trainable.encoder for stage in resolved.stages)
    flops = (6 if full else 4) * met * sum(s.tokens or 0 for s in found.sources.values())
    flops += (6 if trains_encoder else 2) * encoder * FRAMES * sum(s.audio_s for s in found.sources.values())
    read, heard, rounds = _answering(found, resolved, corpus, tokens)
    budget = resolved.spec.micro_batch_tokens
    per_example = sum(s.tokens or 0 for s in found.sources.values()) / max(1, found.examples)
    micro = min(8192 if budget == "auto" else budget, per_example * resolved.spec.global_batch)
    text = FORMATS[tokens.family].text_config(config)
    activations = micro * text.get("num_hidden_layers", 32) * text.get("hidden_size", 4096) * ACTIVATION_BYTES
    for device, rate, memory, width in (
        ("this CPU", _cpu_flops() * CPU_SHARE, CPU_BYTES, 4), ("one H200", GPU_FLOPS, GPU_BYTES, 2),
    ):  # fmt: skip
        answering = 2 * (met * read + encoder * FRAMES * heard) / rate + rounds * met * width / memory
        found.seconds[device] = round(flops / rate, 1)
        found.answering_s[device] = round(answering, 1)
        weights = (lm + encoder) * (16 if full else width)
        found.memory_gib[device] = round((weights + activations * width) / 2**30, 2)


def _answering(
    found: Estimate, resolved: Resolved, corpus: Corpus, tokens: Tokens
) -> tuple[float, float, float]:
    """(tokens read, seconds heard, tokens written one after the other) by the evaluation of the test. Answers are taken
    to be as long as the right ones; those that never end are as long as `decode` lets them be."""
    spec, test = resolved.spec, corpus.test
    assert test is not None
    sample = [test.rows[i] for i in permutation(0, "estimate", len(test.rows))[:COUNTED_DEMONSTRATIONS]]
    longest = tokens.shape.window_samples / tokens.shape.sampling_rate
    rows = [replace(u, duration_s=u.duration_s and min(u.duration_s, longest)) for u in sample]
    count, audio = found.test_utterances, statistics.fmean(u.duration_s or 0.0 for u in rows)
    if isinstance(spec.recipe, LinearProbe):
        learnt = corpus.sources["speech"].rows
        return 0.0, audio * count + sum(u.duration_s or 0.0 for u in learnt), 0.0
    heard = [u for u in rows if u.audio and u.duration_s]
    said = [u for u in rows if u.text] if spec.evaluate.text_twin or not heard else []
    read = heard_s = rounds = 0.0
    for view, shown in (("speech", heard), ("text", said)):
        if shown:
            each = [tokens.count(u, corpus.tasks[u.task], view)[:2] for u in shown]
            share = count * len(shown) / len(rows)
            read += share * statistics.fmean(map(sum, each))
            rounds += math.ceil(share / TOGETHER) * statistics.fmean(answer for _, answer in each)
            heard_s += share * audio if view == "speech" else 0.0
    conditions = spec.evaluate.conditions().values()
    if before := sum(one.shots for one in conditions):
        shown = [u for u in corpus.shown() if u.text and u.label is not None][:COUNTED_DEMONSTRATIONS]
        ways = bool(heard) + bool(said)
        length = statistics.fmean(len(tokens.tokenizer.ids(demonstration(u, corpus.tasks[u.task]))) for u in shown)
        read += before * length * count * ways / len(conditions)
    times = len(conditions)
    return times * read * spec.evaluate.decode.beams, times * heard_s, times * rounds


def parameters(family: str, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(language model, what of it one token meets, audio encoder) parameters by a base's config, embeddings and head
    included; norms, biases and projectors left out, and the encoder taken for a plain one."""
    text = FORMATS[family].text_config(dict(config))
    d, layers, heads = (
        text.get(k, v) for k, v in (("hidden_size", 4096), ("num_hidden_layers", 32), ("num_attention_heads", 32))
    )
    width = text.get("head_dim") or d // heads
    attention = 2 * d * width * (heads + text.get("num_key_value_heads", heads))
    mlp = met = 3 * d * text.get("intermediate_size", 11008)
    if experts := text.get("num_experts"):
        expert = 3 * d * text["moe_intermediate_size"]
        mlp, met = experts * (expert + d), text["num_experts_per_tok"] * expert + experts * d
    rest = 2 * d * text.get("vocab_size", 156032)
    whole = config.get("thinker_config", config)
    audio = whole.get("audio_config") or whole.get("encoder_config") or {}
    encoder = sum(_encoder(part, d) for part in (audio, config.get("second_audio_config")) if part is not None)
    return layers * (attention + mlp) + rest, layers * (attention + met) + rest, encoder


def _encoder(audio: Mapping[str, Any], width: int) -> int:
    """Parameters of an encoder in the form of Whisper's, and roughly of others, with a linear way into `width`."""

    def said(*names: str, default: int) -> int:
        return next((int(audio[n]) for n in names if audio.get(n)), default)

    a = said("d_model", "hidden_size", "hidden_dim", default=1280)
    g = said("encoder_ffn_dim", "intermediate_size", default=4 * a)
    blocks = said("encoder_layers", "num_hidden_layers", "num_layers", "num_blocks", default=32)
    return blocks * (4 * a * a + 2 * a * g) + 3 * a * (said("num_mel_bins", "input_size", default=128) + a) + a * width


@cache
def _cpu_flops() -> float:
    """Matrix-product FLOP/s of this machine, measured once, for about a tenth of a second."""
    a = np.ones((512, 512), dtype=np.float32)
    np.dot(a, a)
    best = min(_timed_product(a) for _ in range(5))
    return 2 * 512**3 / best


def _timed_product(a: np.ndarray) -> float:
    start = time.perf_counter()
    np.dot(a, a)
    return time.perf_counter() - start


BARS = " ▁▂▃▄▅▆▇█"


def mix_chart(resolved: Resolved, width: int = 60) -> list[str]:
    """The mix over time as one line of bars per source, stages divided by '|'."""
    total = resolved.steps
    lines = []
    names = list(resolved.sources)
    wide = max(10, *map(len, names))
    for name in names:
        line = ""
        for n, stage in enumerate(resolved.stages):
            columns = max(3, round(width * stage.steps / total))
            share = np.zeros(columns)
            if name in stage.mix:
                share = np.diff(cumulative(stage.mix[name], columns), prepend=0.0)  # type: ignore[index]
            line += ("|" if n else "") + "".join(BARS[int(np.ceil(s * 8 - 1e-9))] for s in share)
        shares = [f"{_mean(stage.mix.get(name)):.0%}" for stage in resolved.stages]  # type: ignore[arg-type]
        lines.append(f"{name:>{wide}} {line}  {' | '.join(shares)}")
    lines.append(f"{'':>{wide}} " + " | ".join(f"{s.name}: {s.steps} steps" for s in resolved.stages))
    return lines


def _mean(curve: Any) -> float:
    return 0.0 if curve is None else float(cumulative(curve, 1000)[-1]) / 1000
