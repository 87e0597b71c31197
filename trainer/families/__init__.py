"""One file per model family. Everything the loop and the evaluation ask of a model is on these classes."""

import re
from pathlib import Path

import torch

from trainer.families.audioflamingo3 import AudioFlamingo3
from trainer.families.composed import Composed
from trainer.families.family import Family
from trainer.families.granite_speech import GraniteSpeech
from trainer.families.phi4_multimodal import Phi4Multimodal
from trainer.families.qwen2_5_omni import Qwen25Omni
from trainer.families.qwen2_audio import Qwen2Audio
from trainer.families.qwen3_omni_moe import Qwen3Omni
from trainer.families.voxtral import Voxtral
from trainer.features import FeatureCache
from trainer.fields import problem
from trainer.resolve import Resolved
from trainer.spec import JobSpec
from trainer.tokens import family_of, locate_base

FAMILIES: dict[str, type[Family]] = {
    "qwen2_audio": Qwen2Audio,
    "qwen2_5_omni": Qwen25Omni,
    "qwen3_omni_moe": Qwen3Omni,
    "voxtral": Voxtral,
    "audioflamingo3": AudioFlamingo3,
    "granite_speech": GraniteSpeech,
    "phi4_multimodal": Phi4Multimodal,
    "attune_composed": Composed,
}
"""Family classes by `model_type`; the same names as `trainer.formats.FORMATS`."""


def load(folder: str | Path, **options) -> Family:
    """The base in `folder`, loaded by the class of its family (options as of `Family.load`)."""
    return FAMILIES[family_of(folder)].load(folder, **options)


def own_device(rank: int, gpus: int) -> str:
    """The device of a rank on a machine with `gpus` GPUs: ranks go round them; `cpu` where there are none."""
    return f"cuda:{rank % gpus}" if gpus else "cpu"


def in_bf16(spec: JobSpec, device: str) -> bool:
    """Whether the job computes in bf16 on this device, else in fp32."""
    return spec.precision == "bf16" or (spec.precision == "auto" and torch.device(device).type != "cpu")


def load_base(resolved: Resolved, device: str, cache: FeatureCache | None = None):
    """The job's base as it computes with it; SpecError, BaseError where there is none, or one of another family."""
    spec, revision = resolved.spec, resolved.base_revision
    folder = locate_base(spec.base, None if (revision or "").startswith("files:") else revision)
    check_family(spec, folder)
    dtype = torch.bfloat16 if in_bf16(spec, device) else torch.float32
    return load(folder, device=device, dtype=dtype, name=spec.base, cache=cache)


def check_family(spec: JobSpec, folder: str | Path) -> None:
    """SpecError where the base is of another family than the spec says."""
    found = family_of(folder)
    if spec.family not in ("auto", found):
        raise problem("family", f"the base {spec.base} is of the family {found}", spec.family)


def check_loaded(model: Family, spec: JobSpec, revision: str | None, precision: str) -> None:
    """SpecError where a loaded base is not what the job says, both named.

    revision: of the resolved job; a local base is compared by its files' hash, one of the hub by name and commit, one
    of s3 by name and listing.
    precision: `fp32` or `bf16`, what the job computes in.
    """
    # A snapshot of the hub lies in a folder named by its commit, one of s3 in a folder named by its listing.
    pinned, at = revision or "", model.folder.name
    if pinned.startswith("files:"):
        found, fits = model.pin, model.pin == pinned
    else:
        found, exact = at, re.fullmatch("[0-9a-f]{40}|listing:[0-9a-f]{64}", pinned)
        fits = model.name == spec.base and (not exact or pinned.removeprefix("listing:") == at)
    if not fits:
        resolved, loaded = f"{spec.base} ({pinned[:18] or 'not pinned'})", f"{model.name} ({found[:18]})"
        message = f"the job was resolved with {resolved}, loaded is {loaded}; load that base or resolve the job again"
        raise problem("base", message)
    dtype = "bf16" if model.bf16 else "fp32"
    if dtype != precision:
        message = f"the job computes in {precision} on {model.device}, {model.name} is loaded in {dtype}"
        raise problem("precision", f"{message}; load it in {precision}", spec.precision)
