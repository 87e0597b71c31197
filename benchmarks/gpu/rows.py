"""The rows of the GPU benchmark: each checks first that both sides do the same, then returns figures."""

from typing import Any

import numpy as np
import torch

from benchmarks import mel, shapes
from benchmarks.gpu.stand import PEAK, Stand, figures
from benchmarks.ours import LORA
from trainer.evaluate import answer
from trainer.spec import Decode
from trainer.views import Example


def noise(stand: Stand) -> float:
    """Relative difference of losses that is rounding: bf16 has 8 bits."""
    return 2e-2 if stand.scale.dtype == torch.bfloat16 else 1e-4


def agree(ours: list[float], theirs: list[float], limit: float) -> float:
    """The largest relative difference; RuntimeError beyond the limit."""
    worst = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
    if worst > limit:
        raise RuntimeError(f"losses differ by {worst:.1e}, more than {limit:g}: not the same training")
    return worst


def matmul(stand: Stand) -> dict[str, Any]:
    """FLOP/s of a plain matrix product: what the same card gives in the same run."""
    side = 8192 // stand.scale.divide
    a, b = (torch.randn(side, side, device=stand.scale.device, dtype=stand.scale.dtype) for _ in range(2))
    rows = stand.turns({"ours": lambda: [a @ b for _ in range(10)]}, 10)
    return {"tflops": {k: v * 2 * side**3 / 1e12 for k, v in figures(rows)["ours"].items()}, "side": side}


def end_to_end(stand: Stand, order: str = "instruction_first") -> dict[str, Any]:
    """Rows 1 and 2: examples per second of whole training steps. Peers get their mel frames for nothing."""
    step, per_step = stand.scale.step, stand.scale.step // shapes.BLOCK
    gate = stand.examples(stand.scale.gate_steps * step, order=order)
    theirs = stand.train_peer("tuned", stand.inputs(gate), per_step)
    worst = agree(stand.train_ours(gate, step), theirs, noise(stand))
    given = stand.examples(stand.scale.steps * step, order=order, seed=1)
    inputs = stand.inputs(given)
    stand.forget()
    rows = stand.turns(
        {
            "ours": lambda: stand.train_ours(given, step),
            "ours, cached": lambda: stand.train_ours(given, step, cache=True),
            "tuned": lambda: stand.train_peer("tuned", inputs, per_step),
            "naive": lambda: stand.train_peer("naive", inputs, per_step),
        },
        len(given),
    )
    return {"unit": "examples/s", "gate_steps": len(theirs), "largest_loss_difference": worst, "results": figures(rows)}


def unshared(stand: Stand) -> dict[str, Any]:
    """Row 2: the prompt stands behind the recording, so that nothing can be shared."""
    return end_to_end(stand, "audio_first")


def language_model(stand: Stand) -> dict[str, Any]:
    """Row 3: text alone, no padding on either side; tokens per second, and their share of the card."""
    stand.drop("naive")
    count, length = stand.scale.packed
    draw, end = np.random.default_rng(0), stand.ours.tokens.end
    given = []
    for n in range(count):
        ids = tuple(int(i) for i in draw.integers(16, 2000, length - 1))
        cut = length * 7 // 8
        given.append(Example(str(n), ids[:cut], (*ids[cut:], end), None, str(n)))
    inputs = stand.inputs(given, count)
    worst = agree(stand.train_ours(given, count), stand.train_peer("tuned", inputs, 1), noise(stand))
    timed = {
        "ours": lambda: stand.train_ours(given, count),
        "PEFT": lambda: stand.train_peer("tuned", inputs, 1),
    }
    rows = stand.turns(timed, count * length)
    if stand.scale.device == "cuda":
        for layer in stand.peer("tuned").base_model.model.model.language_model.layers:
            layer.compile()
        compiled = stand.turns({"ours": timed["ours"], "PEFT, compiled": timed["PEFT"]}, count * length)
        rows = [{**a, **b} for a, b in zip(rows, compiled, strict=True)]
        stand.drop("tuned")  # compiled layers are no peer for the other rows
    layers = stand.ours.language_model.layers
    linear = sum(p.numel() for n, p in layers.named_parameters() if "lora" not in n and p.dim() == 2)
    found = figures(rows)
    return {
        "unit": "tokens/s", "tokens": count * length, "largest_loss_difference": worst, "results": found,
        "mfu_4n": {name: 4 * linear * found[name]["median"] / PEAK for name in ("ours", "PEFT")},
    }  # fmt: skip


def small_steps(stand: Stand) -> dict[str, Any]:
    """Row 4 without fusing jobs, which is not built: steps of 8, as 8 jobs of a sweep take turns on one base, and what
    it takes to change the adapter."""
    given = stand.examples(stand.scale.steps * shapes.BLOCK, seed=2)
    inputs = stand.inputs(given)
    rows = stand.turns(
        {
            "ours": lambda: stand.train_ours(given, shapes.BLOCK, cache=True),
            "tuned": lambda: stand.train_peer("tuned", inputs, 1),
        },
        len(given),
    )

    def swap() -> None:
        stand.ours.detach()
        stand.ours.attach(LORA, seed=1)

    swaps = stand.turns({"ours": swap}, 1)
    return {"unit": "examples/s", "results": figures(rows), "swaps_per_s": figures(swaps)["ours"],
            "left_out": "several jobs in one step: not built"}  # fmt: skip


def encoder(stand: Stand) -> dict[str, Any]:
    """Row 5: 3-s clips up to what the language model gets. Ours makes its mel frames in the time, the peer has its."""
    draw, count, tokens = np.random.default_rng(0), stand.scale.step, stand.ours.tokens
    size = 3 * tokens.shape.sampling_rate
    waves = [draw.standard_normal(size, dtype=np.float32) * np.float32(0.1) for _ in range(count)]
    heard = tokens.audio_tokens(size)
    given = [Example(str(n), tokens.prompt_ids("", heard), (tokens.end,), wave) for n, wave in enumerate(waves)]
    peer = stand.peer("tuned").base_model.model.model
    projector = getattr(peer, "multi_modal_projector", torch.nn.Identity())
    taken: list[Any] = []
    # What the stock forward hands its encoder, whatever the version calls it.
    hook = peer.audio_tower.register_forward_pre_hook(lambda m, a, k: taken.append((a, k)), with_kwargs=True)

    @torch.no_grad()
    def stock() -> torch.Tensor:
        with stand.autocast():
            out = peer.audio_tower(*taken[0][0], **taken[0][1])
            return projector(getattr(out, "last_hidden_state", out[0]))

    @torch.no_grad()
    def trimmed() -> torch.Tensor:
        with stand.autocast():
            return stand.ours.project(stand.ours.encode(waves))

    def cached() -> list[torch.Tensor]:
        stand.ours.execution = stand.ours.execution.model_copy(update={"feature_cache": True})
        return stand.ours.audio_states(waves)

    with torch.no_grad(), stand.autocast():
        stand.peer("tuned")(**stand.collate(given))
    hook.remove()
    theirs, mine = stock(), trimmed()
    theirs = theirs[:, :heard].flatten(0, 1) if theirs.dim() == 3 else theirs
    far = float((theirs - mine).abs().max() / theirs.abs().max())
    if not far <= noise(stand):
        raise RuntimeError(f"encoder states differ by {far:.1e} of the largest")
    rows = stand.turns({"ours": trimmed, "ours, cached": cached, "stock": stock}, count)
    return {"unit": "utterances/s", "largest_difference": far, "results": figures(rows)}


def front_end(stand: Stand) -> dict[str, Any]:
    """Row 6: mel frames on the CPU, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = mel.measure(stand.scale.rounds, 16)
    finally:
        torch.set_num_threads(threads)
    return {"unit": "ms per clip", "gate": found["gate"], "results": found["results"]}


def evaluation(stand: Stand) -> dict[str, Any]:
    """Row 7: utterances answered per second, all answers of the same length (random weights end none)."""
    count, new = stand.scale.utterances, stand.scale.new_tokens
    given = [Example(e.name, e.prompt, (), e.wave, e.asked) for e in stand.examples(count, seed=3)]
    collate = stand.collator(left=True)

    def ours() -> list[str]:
        stand.forget()
        return answer(stand.ours, given, Decode(max_new_tokens=new))

    @torch.inference_mode()
    def generate(size: int) -> list[str]:
        model, said = stand.peer("tuned").eval(), []
        for at in range(0, count, size):
            inputs = collate(given[at : at + size])
            with stand.autocast():
                out = model.generate(
                    **{k: v for k, v in inputs.items() if k != "labels"}, max_new_tokens=new, min_new_tokens=new,
                    do_sample=False, use_cache=True, pad_token_id=stand.ours.tokens.end,
                )  # fmt: skip
            said += [stand.ours.tokens.tokenizer.decode(ids) for ids in out[:, inputs["input_ids"].shape[1] :].tolist()]
        return said

    sizes = [8, count] if count > 8 else [count]
    same = sum(a == b for a, b in zip(ours(), generate(sizes[-1]), strict=True)) / count
    timed = {"ours": ours, **{f"generate, {n} at once": (lambda n=n: generate(n)) for n in sizes}}
    rows = stand.turns(timed, count)
    return {"unit": "utterances/s", "same_answers": same, "results": figures(rows)}


ROWS = {
    "0 matrix product": matmul,
    "1 end to end": end_to_end,
    "2 end to end, nothing to share": unshared,
    "5 encoder": encoder,
    "7 evaluation": evaluation,
    "4 steps of 8": small_steps,
    "6 mel": front_end,
    "3 language model": language_model,
}
"""By number of speed.md's table, in the order in which they run: the last one changes the peer."""
