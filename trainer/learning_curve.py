"""The chart of a study: metric against recordings used.

`python -m trainer.learning_curve report.json learning_curve.png` draws a report that was made elsewhere.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.metrics import named
from trainer.report_text import number

Row = Mapping[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by most colour-blind readers; marks differ as well."""
MARKS = "osD^vPX"
DASHES = ((0, (1, 1.5)), (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (2, 2)), (0, (9, 3)))


def draw(report: Row, path: Path) -> None:
    """Writes a PNG of what `report.json` says: a colour and mark per scheme, bars for intervals, small dots for single
    seeds, dashed lines and grey bands (intervals) with their names at the right for controls. Where rows were tested
    with several numbers of demonstrations, a second chart below has the metric against these."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric, every = named(report["metric"]), [_drawable(row) for row in report["pooled"]]
    rows, curves = [row for row in every if not row.get("condition")], curves_over_shots(every)
    figure = Figure(figsize=(8.8, 9.4 if curves else 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes, *below = figure.subplots(2 if curves else 1, squeeze=False)[:, 0]
    if curves:
        _draw_shots(below[0], curves, metric.name)
    cells = [row for row in rows if row["kind"] == "cell"]
    counts = sorted({row["recordings"] for row in cells})
    schemes = list(dict.fromkeys(row["scheme"] for row in cells))
    at_count = {n: list(dict.fromkeys(r["scheme"] for r in cells if r["recordings"] == n)) for n in counts}
    for k, scheme in enumerate(schemes):
        own = sorted((row for row in cells if row["scheme"] == scheme), key=lambda row: row["recordings"])
        colour, mark = COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)]
        # Schemes on the same recordings stand side by side, so that their intervals can be read.
        beside = [at_count[row["recordings"]] for row in own]
        shift = [0.12 * (here.index(scheme) - (len(here) - 1) / 2) for here in beside]
        xs = [counts.index(row["recordings"]) + dx for row, dx in zip(own, shift, strict=True)]
        ys = [row["value"] for row in own]
        below = [max(0.0, row["value"] - row["ci_low"]) for row in own]
        above = [max(0.0, row["ci_high"] - row["value"]) for row in own]
        bars = {"capsize": 3, "linewidth": 1.4, "markersize": 6, "zorder": 3}
        axes.errorbar(xs, ys, yerr=[below, above], color=colour, marker=mark, label=scheme, **bars)
        for x, row in zip(xs, own, strict=True):
            if len(row["seeds"]) > 1:
                each = [run["value"] for run in report["rows"] if run["row"] == row["row"]]
                axes.plot([x + 0.04] * len(each), each, ".", color=colour, alpha=0.5, markersize=4, zorder=2)
    highest = max([1.0 if metric.upper == 1.0 else 0.0, *(row["ci_high"] for row in rows)])
    axes.set_ylim(0, 1.03 * highest)
    axes.set_xlim(-0.5, max(len(counts) - 0.5, 0.5))
    answered = {row["modality"] for row in cells}
    controls = [row for row in rows if row["kind"] == "control" and (row["modality"] != "text" or "text" in answered)]
    heights = [row["value"] for row in controls]
    labels = apart(heights, 0.05 * highest, low=0.02 * highest)
    leader = {
        "arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5),
    }  # fmt: skip
    for k, (row, value, y) in enumerate(zip(controls, heights, labels, strict=True)):
        axes.axhline(value, color="#666666", linestyle=DASHES[k % len(DASHES)], linewidth=1.1, zorder=1)
        axes.axhspan(row["ci_low"], row["ci_high"], color="#666666", alpha=0.07, linewidth=0)
        told = not row["recordings"] or str(row["recordings"]) in row["row"].replace(",", "")
        used = "" if told else f", {row['recordings']:,} rec."
        axes.annotate(
            f"{row['row']}{used}: {number(value)}", xy=(1, value), xytext=(1.05, y), va="center", fontsize=8.5,
            xycoords=("axes fraction", "data"), textcoords=("axes fraction", "data"), color="#444444",
            arrowprops=leader,
        )  # fmt: skip
    # Equal distances from one count to the next: a logarithmic axis has no place for 0.
    axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
    axes.set_xlabel("recordings used for training (distances not to scale)")
    better = "" if metric.higher_is_better else " (lower is better)"
    axes.set_ylabel(metric.name.replace("_", " ") + better)
    axes.set_title(f"{report['study']} ({report['base']})", fontsize=10.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    if schemes:
        figure.legend(loc="outside lower center", ncols=min(len(schemes), 5), frameon=False, fontsize=9)
    figure.savefig(path)


def curves_over_shots(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By name of the main row, the same tested with several numbers of demonstrations, rising; empty where none is.
    Other names for labels, or another text to look up by, is another curve."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        apart = [part for part in (row.get("condition") or "").split(".") if part and not part.endswith("-shot")]
        if row.get("shots") is not None:
            found.setdefault(", ".join([row["of"], *apart]), []).append(row)
    return {name: sorted(own, key=lambda row: row["shots"]) for name, own in found.items() if len(own) > 1}


def _draw_shots(axes: Any, curves: Mapping[str, Sequence[Row]], metric: str) -> None:
    """The metric against demonstrations, a line a row; controls dashed."""
    for k, (name, own) in enumerate(curves.items()):
        values = [row["value"] for row in own]
        below = [max(0.0, row["value"] - row["ci_low"]) for row in own]
        above = [max(0.0, row["ci_high"] - row["value"]) for row in own]
        xs = [row["shots"] + 0.06 * (k - (len(curves) - 1) / 2) for row in own]
        axes.errorbar(
            xs, values, yerr=[below, above], color=COLOURS[k % len(COLOURS)], marker=MARKS[k % len(MARKS)], label=name,
            capsize=3, linewidth=1.4, markersize=6, linestyle="-" if own[0]["kind"] == "cell" else "--",
        )  # fmt: skip
    axes.set_xticks(sorted({row["shots"] for own in curves.values() for row in own}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("demonstrations before each query")
    axes.set_ylabel(metric.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    axes.legend(fontsize=8, frameon=False)


def _drawable(row: Row) -> Row:
    """JSON has no nan: what has no value is null in a report."""
    return {**row, **{k: math.nan if row[k] is None else row[k] for k in ("value", "ci_low", "ci_high")}}


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.learning_curve", description="Draw a study's report.")
    parser.add_argument("report", type=Path, help="report.json of a study")
    parser.add_argument("picture", type=Path, help="PNG to write")
    options = parser.parse_args(arguments)
    draw(json.loads(options.report.read_text(encoding="utf-8")), options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
