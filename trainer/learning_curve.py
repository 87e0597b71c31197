"""The chart of a study: metric against recordings used. Light to import; `draw` loads matplotlib (Agg)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.metrics import Metric
from trainer.report_text import number

if TYPE_CHECKING:
    from trainer.compare import Rows
    from trainer.report import Scored

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by most colour-blind readers; marks differ as well."""
MARKS = "osD^vPX"
DASHES = ((0, (1, 1.5)), (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (2, 2)), (0, (9, 3)))


def draw(scored: "Scored", path: Path, *, title: str) -> None:
    """Writes a PNG: a colour and mark per scheme, bars for intervals, small dots for single seeds, dashed lines
    and grey bands (intervals) with their names at the right for controls."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric, pooled = scored.metric, scored.pooled
    figure = Figure(figsize=(8.8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    cells = [row for row in scored.rows if row.kind == "cell"]
    counts = sorted({row.recordings for row in cells})
    schemes = list(dict.fromkeys(row.scheme for row in cells))
    at_count = {n: list(dict.fromkeys(r.scheme for r in cells if r.recordings == n)) for n in counts}
    for k, scheme in enumerate(schemes):
        own = sorted((row for row in cells if row.scheme == scheme), key=lambda row: row.recordings)
        colour, mark = COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)]
        # Schemes on the same recordings stand side by side, so that their intervals can be read.
        beside = [at_count[row.recordings] for row in own]
        shift = [0.12 * (here.index(scheme) - (len(here) - 1) / 2) for here in beside]
        xs = [counts.index(row.recordings) + dx for row, dx in zip(own, shift, strict=True)]
        ys = [pooled[row.name].value for row in own]
        below = [max(0.0, y - pooled[row.name].ci_low) for y, row in zip(ys, own, strict=True)]
        above = [max(0.0, pooled[row.name].ci_high - y) for y, row in zip(ys, own, strict=True)]
        bars = {"capsize": 3, "linewidth": 1.4, "markersize": 6, "zorder": 3}
        axes.errorbar(xs, ys, yerr=[below, above], color=colour, marker=mark, label=scheme, **bars)
        for x, row in zip(xs, own, strict=True):
            if len(row.runs) > 1:
                each = [_value(run, metric) for run in row.cell()]
                axes.plot([x + 0.04] * len(each), each, ".", color=colour, alpha=0.5, markersize=4, zorder=2)
    highest = max([1.0 if metric.upper == 1.0 else 0.0, *(at.ci_high for at in pooled.values())])
    axes.set_ylim(0, 1.03 * highest)
    axes.set_xlim(-0.5, max(len(counts) - 0.5, 0.5))
    controls = scored.baselines()
    heights = [pooled[row.name].value for row in controls]
    labels = apart(heights, 0.05 * highest, low=0.02 * highest)
    leader = {
        "arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5),
    }  # fmt: skip
    for k, (row, value, y) in enumerate(zip(controls, heights, labels, strict=True)):
        axes.axhline(value, color="#666666", linestyle=DASHES[k % len(DASHES)], linewidth=1.1, zorder=1)
        axes.axhspan(pooled[row.name].ci_low, pooled[row.name].ci_high, color="#666666", alpha=0.07, linewidth=0)
        told = not row.recordings or str(row.recordings) in row.name.replace(",", "")
        used = "" if told else f", {row.recordings:,} rec."
        axes.annotate(
            f"{row.name}{used}: {number(value)}", xy=(1, value), xytext=(1.05, y), va="center", fontsize=8.5,
            xycoords=("axes fraction", "data"), textcoords=("axes fraction", "data"), color="#444444",
            arrowprops=leader,
        )  # fmt: skip
    # Equal distances from one count to the next: a logarithmic axis has no place for 0.
    axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
    axes.set_xlabel("recordings used for training (distances not to scale)")
    better = "" if metric.higher_is_better else " (lower is better)"
    axes.set_ylabel(metric.name.replace("_", " ") + better)
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    if schemes:
        figure.legend(loc="outside lower center", ncols=min(len(schemes), 5), frameon=False, fontsize=9)
    figure.savefig(path)


def _value(rows: "Rows", metric: Metric) -> float:
    return metric.value(sum(parts) for parts in zip(*(row["counts"][metric.name] for row in rows), strict=True))


def apart(wanted: Sequence[float], gap: float, *, low: float = 0.0) -> list[float]:
    """Heights near `wanted` (same order), none below `low` and each at least `gap` from the next: for labels."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [max(low, wanted[i]) for i in order]
    for _ in range(100):  # neighbours push each other away by halves, the floor stays
        for k in range(1, len(placed)):
            overlap = gap - (placed[k] - placed[k - 1])
            if overlap > 0:
                down = min(overlap / 2, placed[k - 1] - low)
                placed[k - 1], placed[k] = placed[k - 1] - down, placed[k] + overlap - down
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap)
    result = [0.0] * len(wanted)
    for i, y in zip(order, placed, strict=True):
        result[i] = y
    return result
