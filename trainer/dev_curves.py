"""How soon a study's cells come near the best that any of them reaches on the dev set (light).

arXiv 2601.12494 claims that some schedules converge faster at first: here steps are counted to a target that lies NEAR
of the way from the worst to the best value that any run has on the dev set: the same for accuracies and for errors.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report_text import number
from trainer.result import DevScore

NEAR = 0.9
Curve = Sequence[DevScore]


def steps_to(curve: Mapping[int, float], target: float, *, higher_is_better: bool) -> int | None:
    """The first step of a curve (value by step) at which the target is reached; None where it never is."""
    sign = 1 if higher_is_better else -1
    return min((step for step, value in curve.items() if sign * value >= sign * target - 1e-12), default=None)


def near_the_best(curves: Sequence[Mapping[int, float]], *, higher_is_better: bool) -> float:
    """The target of curves."""
    values = [value for curve in curves for value in curve.values()]
    worst, best = (min, max) if higher_is_better else (max, min)
    return worst(values) + NEAR * (best(values) - worst(values))


def dev_report(found: Mapping[str, Mapping[Any, Curve]], task: str | None, *, higher_is_better: bool) -> dict[str, Any]:
    """What `report.json` says of the dev curves of cells by name and seed; empty where there are none. `task`: that
    task's own metric, where the dev set has several."""
    curves = {
        (row, seed): {at.step: at.tasks[task] if task else at.value for at in curve if not task or task in at.tasks}
        for row, runs in found.items()
        for seed, curve in runs.items()
    }
    curves = {key: curve for key, curve in curves.items() if curve}
    if not curves:
        return {}
    target = near_the_best(list(curves.values()), higher_is_better=higher_is_better)
    return {"target": target, "rows": [
        {"row": row, "seed": seed, "steps_to_target": steps_to(curve, target, higher_is_better=higher_is_better),
         "curve": sorted(curve.items())}
        for (row, seed), curve in curves.items()
    ]}  # fmt: skip


def sentences(said: Mapping[str, Any]) -> list[str]:
    """One sentence a cell."""
    lines = []
    for row in dict.fromkeys(run["row"] for run in said.get("rows", ())):
        taken = [run["steps_to_target"] for run in said["rows"] if run["row"] == row]
        reached = [steps for steps in taken if steps is not None]
        never = f" ({len(taken) - len(reached)} of {len(taken)} runs do not)" if len(reached) < len(taken) else ""
        how = f"after {statistics.median(reached):g} steps{never}" if reached else "in no run"
        lines.append(f"{row}: the dev set's {number(said['target'])} is reached {how}.")
    return lines
