"""Learning rate over a stage, as a share of the peak."""

import math

import numpy as np

from trainer.stage import Optimizer, area


def lr_scale(step: int, steps: int, optimizer: Optimizer) -> float:
    """Share of the peak rate at `step` (0 … steps - 1) of a stage.

    The warm-up rises linearly and reaches the peak at its last step. After it, `cosine` and `linear` fall
    towards `final_lr_ratio`, which they would reach one step after the last (so no step is spent at a rate of
    zero); `wsd` (warm-up, stable, decay: arXiv 2405.18392) holds the peak and falls linearly over the last
    `decay_ratio` of the steps; `constant` holds the peak. A curve runs over the steps after the warm-up, each at the
    curve's mean over it. A stage that is part of a longer schedule takes the rates of its part.
    """
    if optimizer.schedule_part:
        first, steps = optimizer.schedule_part
        step += first
    warmup = math.ceil(steps * optimizer.warmup_ratio - 1e-9)
    if step < warmup:
        return (step + 1) / warmup
    fall = steps - warmup
    if not isinstance(optimizer.schedule, str):
        from_, to = area(optimizer.schedule, np.array([step - warmup, step - warmup + 1]) / fall)
        return float(to - from_) * fall
    if optimizer.schedule == "wsd":
        fall = min(fall, math.ceil(steps * optimizer.decay_ratio - 1e-9))
    progress = max(0.0, (step - (steps - fall)) / fall) if fall else 0.0
    match optimizer.schedule:
        case "constant":
            left = 1.0
        case "linear" | "wsd":
            left = 1 - progress
        case "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
    return optimizer.final_lr_ratio + (1 - optimizer.final_lr_ratio) * left
