"""What is trained on top of a base: LoRA through PEFT, whole parts, or both; attached, saved, loaded, taken
off.

Stock PEFT layout, so that `PeftModel.from_pretrained(stock_model, folder)` gives the same logits anywhere.
"""

import hashlib
import json
import math
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from trainer.fields import problem
from trainer.rng import seed_of


@dataclass(frozen=True, slots=True)
class Parts:
    """What a family's modules are called. A bare layer name such as `q_proj` would also hit an audio tower, whose
    layers often carry the same names; so every part is told by where it stands."""

    encoder: str
    """Stands in the path of every module of the audio encoder."""
    projector: str
    """Stands in the path of every module between encoder and language model: a regular expression. May lie in the
    encoder, and is then not counted as encoder."""
    lm: str
    """Stands in the path of every layer of the language model that may get adapters: a regular expression."""
    lm_targets: tuple[str, ...]
    """What `targets: auto` stands for: all linear layers of a block of the language model."""
    encoder_targets: tuple[str, ...]
    """Linear layers of an encoder block that get adapters under `encoder: lora`."""
    listed: bool = False
    """Targets are given to PEFT layer by layer instead of as a pattern: of a class with fused experts it would read a
    pattern as bare names, and hit the encoder."""

    def of(self, name: str) -> str:
        """`encoder`, `projector` or `lm`, from a parameter's name."""
        name = name.replace(".modules_to_save.default", "")
        return "projector" if re.search(self.projector, name) else "encoder" if self.encoder in name else "lm"

    def whole(self, model: nn.Module, encoder: bool, projector: bool) -> list[str]:
        """Ends of the paths of the modules that are encoder or projector, the outermost alone."""
        patterns = [p for p, on in ((self.encoder, encoder), (self.projector, projector)) if on]
        found = (re.fullmatch(rf"(?:.*\.)?({'|'.join(patterns)})", name) for name, _ in model.named_modules())
        names = list(dict.fromkeys(match[1] for match in found if match)) if patterns else []
        return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]


def attach(
    model: nn.Module, tuning, parts: Parts, *, seed: int, name: str
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Makes the parts that `tuning` names trainable and freezes the rest.

    Returns the module to train (a PeftModel around `model` for LoRA, else `model` itself) and its trainable
    parameters by name. `name`: the base as the user wrote it, stored in the adapter's config instead of a
    path on this machine. LoRA matrices are drawn on the CPU from (seed, parameter name), hence the same on
    every device and whatever the order of modules.
    """
    if tuning.encoder == "auto":
        message = "'auto' must be settled by the hearing check before training; say frozen, lora or full"
        raise problem("tuning.encoder", message, tuning.encoder)
    if tuning.encoder == "lora" and tuning.method != "lora":
        raise problem("tuning.encoder", f"'lora' goes with method: lora, not {tuning.method}", tuning.encoder)
    model.requires_grad_(False)
    if tuning.method == "lora":
        with warnings.catch_warnings():  # PEFT reads an attribute that transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            module = get_peft_model(model, _config(model, tuning, parts))  # type: ignore[arg-type]
        module.peft_config["default"].base_model_name_or_path = name
        if tuning.projector == "frozen":  # where it lies in an encoder that is saved whole
            for key, parameter in module.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and parts.of(key) != "projector")
    else:
        module = model
        whole = {p for p in ("encoder", "projector") if getattr(tuning, p) == "full"}
        whole |= {"lm"} if tuning.method == "full" else {"projector"}
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(parts.of(key) in whole)
    trained = {}
    for key, parameter in module.named_parameters():
        if not parameter.requires_grad or "embed_positions" in key:  # sinusoids, fixed in the stock class too
            parameter.requires_grad_(False)
            continue
        parameter.data = parameter.data.float()  # AdamW on bf16 weights would lose small updates
        if "lora_A" in key:
            bound = 1 / math.sqrt(parameter.shape[1])  # PEFT's own: Kaiming uniform with a = sqrt(5)
            generator = torch.Generator().manual_seed(seed_of(seed, "lora", key))
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        trained[key] = parameter
    return module, trained


def _config(model: nn.Module, tuning, parts: Parts) -> LoraConfig:
    targets = list(parts.lm_targets) if tuning.targets == "auto" else tuning.targets
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.search(parts.lm, n)]
    for target in targets:
        if not any(n.split(".")[-1] == target for n in names):
            known = sorted({n.split(".")[-1] for n in names})
            message = f"the language model has no such layer; it has {', '.join(known)}"
            raise problem("tuning.targets", message, target)
    pattern = rf".*{parts.lm}.*\.({'|'.join(targets)})"
    if tuning.encoder == "lora":
        pattern += rf"|.*{parts.encoder}.*\.({'|'.join(parts.encoder_targets)})"
    saved = parts.whole(model, tuning.encoder == "full", tuning.projector == "full")
    found = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(pattern, n)]
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,  # type: ignore[arg-type]
        lora_dropout=tuning.dropout,
        use_rslora=tuning.rslora,
        use_dora=tuning.dora,
        target_modules=found if parts.listed else pattern,
        modules_to_save=saved or None,
        task_type="CAUSAL_LM",
    )


def detach(model: nn.Module) -> nn.Module:
    """Takes a LoRA adapter off and returns the untouched base; PEFT's own `unload` would keep the trained
    copies of whole parts."""
    if not isinstance(model, PeftModel):
        return model
    for path, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.original_module)
    base = model.unload()  # type: ignore[operator]
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base


def adapter_files(module: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, bytes]:
    """The trained state as {file name: bytes}: PEFT layout for LoRA; for `full` and `projector` the trained
    tensors under the stock model's names."""
    if not isinstance(module, PeftModel):
        return {"model.safetensors": _bytes(trained)}
    config = module.peft_config["default"]
    was, config.inference_mode = config.inference_mode, True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        written = json.loads((Path(folder) / "adapter_config.json").read_text())
    config.inference_mode = was
    return {
        "adapter_config.json": (json.dumps(written, indent=2, sort_keys=True) + "\n").encode(),
        "adapter_model.safetensors": _bytes(get_peft_model_state_dict(module, save_embedding_layers=False)),
    }


def _bytes(tensors) -> bytes:
    return save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"format": "pt"})


def start_from(module: nn.Module, trained: dict[str, nn.Parameter], data: bytes, ref: str) -> None:
    """Puts the trained state that an earlier job left (safetensors of `adapter_files`) under parameters that `attach`
    prepared: training then starts as the model that the earlier job was. SpecError where something of it has no place
    of its shape here; what it lacks stays as it is in the base."""
    here = {_plain(name): parameter for name, parameter in trained.items()}
    held = {_plain(name): value for name, value in [*module.named_parameters(), *module.named_buffers()]}
    try:
        found = {_plain(name): value for name, value in load_tensors(data).items()}
    except SafetensorError as error:
        raise problem("init_from", f"its weights cannot be read ({error}); copy them again", ref) from None

    def fits(name: str, value: torch.Tensor) -> bool:
        if name in here:
            return here[name].shape == value.shape
        # Parts that are saved whole hold what nobody trains (sinusoids, statistics of norms): the same here.
        return name in held and torch.equal(held[name].detach().cpu().to(value.dtype), value)

    homeless = [f"{name} {tuple(value.shape)}" for name, value in found.items() if not fits(name, value)]
    if homeless:
        message = (
            f"does not fit this job: {len(homeless)} of its {len(found)} tensors have no place of their shape in what "
            f"this job trains, such as {homeless[0]}; use the same base and tune the same parts and layers (tuning)"
        )
        raise problem("init_from", message, ref)
    with torch.no_grad():
        for name, value in found.items():
            if name in here:
                here[name].copy_(value)


def _plain(name: str) -> str:
    """A parameter's name as in the stock model, the same in a module and in the files that are made of it."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
    name = re.sub(r"(lora_\w+)\.default\b", r"\1", name)
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def load_adapter(module: nn.Module, trained: dict[str, nn.Parameter], files: dict[str, bytes]) -> None:
    """Puts a saved trained state into a module that `attach` prepared in the same way."""
    if isinstance(module, PeftModel):
        set_peft_model_state_dict(module, load_tensors(files["adapter_model.safetensors"]))
        return
    with torch.no_grad():
        for key, value in load_tensors(files["model.safetensors"]).items():
            trained[key].copy_(value)


def checksum(module: nn.Module) -> str:
    """A digest over all parameters by name, cheap enough for 8 B on a GPU: position-weighted sums of the
    bits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters(), key=lambda item: item[0]):
        bits = parameter.detach().reshape(-1)
        bits = bits.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
        total = 0
        for start in range(0, bits.numel(), 1 << 24):
            part = bits[start : start + (1 << 24)].long()
            weights = torch.arange(start, start + len(part), device=part.device) % 65521 + 1
            total = (total + int((part * weights).sum())) & (2**64 - 1)
        digest.update(f"{name} {tuple(parameter.shape)} {total}\n".encode())
    return digest.hexdigest()
