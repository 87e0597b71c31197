"""`python -m trainer compose`: a composed base from an audio encoder (or two), a projector and a language model.

Encoder and language model keep their weights; the projector is new and must be trained (`tuning: {method: projector}`
is the usual first stage). Their dropout is set to zero: it is the training's to say.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCausalLM, AutoTokenizer, WhisperModel

from trainer.bases import BaseError, locate_base
from trainer.families import attention
from trainer.families.composed import Composed
from trainer.families.composed.encoders import KINDS, MIMI
from trainer.families.composed.model import ComposedConfig, ComposedForConditionalGeneration
from trainer.families.composed.projectors import projector as new_projector
from trainer.formats.composed import frames
from trainer.formats.prompt import Prompt
from trainer.objectives.cross_entropy import cross_entropy
from trainer.views import Example

PROJECTORS: dict[str, dict[str, Any]] = {
    "linear": {"width": 2048},
    "conv": {"width": 1024},
    "transformer": {"width": 960, "layers": 12, "heads": 15, "key_heads": 5, "mlp": 2560},
    "qformer": {"queries": 1, "width": 768, "layers": 2, "heads": 12, "mlp": 3072, "cross_every": 2},
}
"""Sizes unless told otherwise: SLAM-ASR, –, SALAD, SALMONN (see `trainer.families.composed.projectors`)."""
PER_SECOND = {"linear": 10, "conv": 12.5, "transformer": 12.5, "qformer": 3}
"""Strides per second of audio unless told otherwise."""
NOT_SUPPORTED = "is not supported; take a language model like Llama, Mistral or Qwen"
TOLERANCE, LAYERS = 1e-3, 2
"""Of log-probabilities between plain and packed computation, in fp32 over this many layers."""


def compose(
    encoders: Sequence[str],
    llm: str,
    out: str | Path,
    *,
    kind: str = "linear",
    settings: dict[str, Any] | None = None,
    window_s: float = 30.0,
    order: str = "audio_first",
    audio_token: str = "<|audio|>",
    seed: int = 0,
) -> Prompt:
    """Writes the base into the new folder `out` and returns the prompt it took from the language model.

    encoders, llm: folders, hub ids or s3:// folders. settings: of the projector, beside `PROJECTORS`; `stride` in
    frames. BaseError where the parts do not go together, or the language model computes logits in a way that packs
    do not.
    """
    transformers.utils.logging.disable_progress_bar()
    out = Path(out)
    if out.exists():
        raise BaseError(f"{out}: exists already; name a new folder")
    audio, towers, extractors = [], [], []
    for name in encoders:
        folder = locate_base(name)
        audio.append(_encoder_config(folder))
        towers.append(_encoder(folder, audio[-1]))
        extractors.append(_plain(AutoFeatureExtractor.from_pretrained(folder, local_files_only=True).to_dict()))
    folder = locate_base(llm)
    text = _without_dropout(AutoConfig.from_pretrained(folder, local_files_only=True))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    prompt = _prompt(tokenizer, folder, audio_token, order)
    shapes = [frames(c.to_dict(), e, window_s) for c, e in zip(audio, extractors, strict=True)]
    config = ComposedConfig(
        text_config=text,
        audio_config=audio[0],
        second_audio_config=audio[1] if len(audio) > 1 else None,
        extractors=extractors,
        projector=_settings(kind, settings or {}, shapes[0].sampling_rate / shapes[0].hop),
        prompt=asdict(prompt),
        audio_token_id=tokenizer.convert_tokens_to_ids(audio_token),
        window_s=window_s,
    )
    with torch.device("meta"):
        model = ComposedForConditionalGeneration(config)
    if not _packable(model.language_model, text):
        raise BaseError(f"--llm {llm}: {text.model_type} {NOT_SUPPORTED}")
    for n, tower in enumerate(towers):
        model.audio_tower.encoders[n] = tower
    model.language_model = _read(AutoModelForCausalLM, folder, text)
    torch.manual_seed(seed)
    assert config.projector is not None
    model.multi_modal_projector = new_projector(config.projector, model.audio_tower.width, text.hidden_size)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part, max_shard_size="5GB")
        tokenizer.save_pretrained(part)
        if not (part / "tokenizer.json").exists():
            raise BaseError(f"--llm {llm}: its tokenizer has no form as tokenizer.json")
        dtype = model.language_model.dtype
        del model, towers
        _check(part, llm, dtype)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return prompt


def _encoder_config(folder: Path) -> Any:
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type == "mimi":
        if MIMI is None:
            raise BaseError(f"--encoder {folder}: Mimi needs a newer transformers than {transformers.__version__}")
        config = MIMI.config_class(**{k: v for k, v in config.to_dict().items() if k != "model_type"})
    if config.model_type not in KINDS:
        known = ", ".join(k.removesuffix("_encoder") for k in KINDS)
        raise BaseError(f"--encoder {folder}: {config.model_type!r} is not supported; supported: {known}")
    return _without_dropout(config)


def _encoder(folder: Path, config: Any) -> Any:
    """The encoder alone: without decoder, quantiser, or a head for recognition."""
    if config.model_type == "whisper":
        return _read(WhisperModel, folder, config).encoder
    return _read(KINDS[config.model_type].model, folder, config)


def _read(cls: Any, folder: Path, config: Any) -> Any:
    model, found = cls.from_pretrained(
        folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    missing = sorted(set(found["missing_keys"]) - {"masked_spec_embed"})  # that one is for pre-training alone
    if missing:
        raise BaseError(f"{folder}: no weights for {len(missing)} parameters, such as {missing[0]}")
    return model


def _without_dropout(config: Any) -> Any:
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or "layerdrop" in key):
            setattr(config, key, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    return config


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what is made from them."""
    return {k: v for k, v in settings.items() if k != "mel_filters"}


def _settings(kind: str, given: dict[str, Any], rate: float) -> dict[str, Any]:
    """The projector's part of config.json. rate: encoder frames per second."""
    if kind not in PROJECTORS:
        raise BaseError(f"--projector {kind}: no such kind; there are {', '.join(PROJECTORS)}")
    known = {"stride": max(1, round(rate / PER_SECOND[kind])), **PROJECTORS[kind]}
    if unknown := sorted(given.keys() - known.keys()):
        raise BaseError(f"--projector {kind} has no {', '.join(unknown)}; it has {', '.join(known)}")
    if low := sorted(k for k, v in given.items() if v < 1):
        raise BaseError(f"--projector {kind}: {low[0]} {given[low[0]]} must be at least 1")
    return {"kind": kind, "queries": 1, **known, **given}


ASKED, SAID = "WHAT IS ASKED", "WHAT IS SAID"


def _prompt(tokenizer: Any, folder: Path, audio_token: str, order: str) -> Prompt:
    """The pieces of the language model's chat template, and the audio token added to its tokenizer. A model without a
    template gets the content, a line break and then the answer up to its end of text."""
    if audio_token in tokenizer.get_vocab():
        raise BaseError(f"--audio-token {audio_token}: the language model has that token already; choose another")
    tokenizer.add_tokens([AddedToken(audio_token, special=True, normalized=False)], special_tokens=True)
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    before, after, end = tokenizer.bos_token or "", "\n", tokenizer.eos_token
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": ASKED}]
        asked = _rendered(tokenizer, turns, add_generation_prompt=True)
        answered = _rendered(tokenizer, [*turns, {"role": "assistant", "content": SAID}])
        if asked.count(ASKED) != 1 or answered.count(SAID) != 1:
            raise BaseError(f"--llm {folder}: its chat template does not show every turn as it is, and once")
        before, after = asked.split(ASKED)
        behind = answered.split(SAID)[1]
        found = sorted((behind.index(t), t) for t in special if t in behind)
        end = found[0][1] if found else end
    if not end:
        raise BaseError(f"--llm {folder}: neither its chat template nor its tokenizer says how an answer ends")
    return Prompt(
        before=before, audio_before="", audio_token=audio_token, audio_after="\n", after=after, end=end, order=order,
        stops=tuple(sorted(_ends(tokenizer, folder) - {end})),
    )  # fmt: skip


def _rendered(tokenizer: Any, turns: list[dict[str, str]], **options) -> str:
    """enable_thinking: off where a template knows it, so that the answer is the answer."""
    return tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False, **options)


def _ends(tokenizer: Any, folder: Path) -> set[str]:
    """Tokens at which the language model's own generation stops."""
    ids: Any = tokenizer.eos_token_id
    if (folder / "generation_config.json").exists():
        ids = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id", ids)
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    return {tokenizer.convert_ids_to_tokens(i) for i in ids}


def _packable(model: Any, config: Any) -> bool:
    """Whether tokens meet in attention alone, and that can be exchanged (`trainer.families.attention`)."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if not (model._supports_attention_backend and kinds <= {"full_attention", "sliding_attention"}):
        return False
    return hasattr(model.get_decoder(), "layers") and not getattr(config, "attn_logit_softcapping", None)


@torch.no_grad()
def _check(folder: Path, llm: str, dtype: torch.dtype) -> None:
    """BaseError where packs give other answers than the plain forward: a language model that scales or caps what it
    computes elsewhere than in its layers and its head. dtype: of the language model's weights."""
    stock = Composed.read(folder, dtype=dtype, attn_implementation=attention.NAME, local_files_only=True)
    decoder = stock.language_model.get_decoder()
    del decoder.layers[LAYERS:]
    decoder.config.num_hidden_layers = len(decoder.layers)
    model = Composed(stock.float(), folder, llm)
    wave = np.random.default_rng(0).standard_normal(model.tokens.shape.sampling_rate).astype(np.float32) * 0.1
    examples = [
        Example("speech", model.tokens.prompt_ids("Say it.", model.tokens.audio_tokens(len(wave))), (), wave, "a"),
        Example("text", model.tokens.prompt_ids("Say it.", "a few words"), (), None, "a"),
        Example("other", model.tokens.prompt_ids("Which one is it?", "others"), (), None, "b"),
    ]
    answer = model.tokens.answer_ids("an answer of a few words")
    batch = model.collate([Example(e.name, e.prompt, answer, e.wave, e.asked) for e in examples])
    got = cross_entropy(model.forward(batch), batch.targets)
    for row, e in enumerate(examples):
        heard = {} if e.wave is None else {"features": model.features([model.listen(e.wave)]), "samples": [len(e.wave)]}
        logits = model.stock(torch.tensor([e.prompt + answer]), **heard).logits[0, -len(answer) - 1 : -1].float()
        off = float((cross_entropy(logits, torch.tensor(answer)) - got[batch.rows == row]).abs().max())
        if not off <= TOLERANCE:
            raise BaseError(
                f"--llm {llm}: packed, it answers otherwise than by itself (log-probabilities differ by {off:.3g}); "
                f"{decoder.config.model_type} {NOT_SUPPORTED}"
            )


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer compose", description="Put a base together from encoder(s), projector and LLM."
    )
    parser.add_argument("--encoder", action="append", required=True, help="folder or hub id; twice: two side by side")
    parser.add_argument("--llm", required=True, help="causal language model: folder or hub id")
    parser.add_argument("--projector", default="linear", help=f"one of {', '.join(PROJECTORS)} (default linear)")
    parser.add_argument("--out", required=True, help="new folder for the base")
    sizes = ("stride", *dict.fromkeys(name for known in PROJECTORS.values() for name in known))
    for name in sizes:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="of the projector; default by its kind")
    parser.add_argument("--window", type=float, default=30.0, help="longest recording in seconds (default 30)")
    parser.add_argument("--order", choices=["audio_first", "instruction_first"], default="audio_first")
    parser.add_argument("--audio-token", default="<|audio|>")
    parser.add_argument("--seed", type=int, default=0, help="of the projector's first weights")
    given = vars(parser.parse_args(arguments))
    if len(given["encoder"]) > 2:
        raise BaseError("--encoder: one or two")
    prompt = compose(
        given["encoder"], given["llm"], given["out"], kind=given["projector"],
        settings={name: given[name] for name in sizes if given[name] is not None},
        window_s=given["window"], order=given["order"], audio_token=given["audio_token"], seed=given["seed"],
    )  # fmt: skip
    around = f"{prompt.before!r} … {prompt.after!r}, the answer ends with {prompt.end!r}"
    print(f"{given['out']}: composed; its prompt is {around}; its projector is new: train it first")
    return 0
