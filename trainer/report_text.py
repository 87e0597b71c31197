"""A study's report in words: the table, one sentence per question, and where a simpler row wins (light)."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.compare import compare, interval
from trainer.metrics import score
from trainer.predictions import FOLLOWING

if TYPE_CHECKING:
    from trainer.report import Question, ReportRow, Scored

WIDTH = 110
"""Columns of the printed table at most."""
NAME, NARROWEST_NAME = 34, 8
"""Columns that a row's name gets before anything else is shown, and that it keeps in any case."""


def number(value: float, *, sign: bool = False) -> str:
    """'.64', '1.01', '−.04'; with `sign` also '+.35'; '–' for what has no value."""
    if not math.isfinite(value):
        return "–"
    digits = f"{abs(value):.2f}"
    if digits.startswith("0."):
        digits = digits[1:]
    minus = value < 0 and digits != ".00"
    return ("−" if minus else "+" if sign else "") + digits


def whole(scored: "Scored", said: Mapping[str, Any], beside: Sequence[str] = ()) -> str:
    """Heading, table, findings and notes, as printed. said: the report's `document`. beside: further metrics, shown
    without interval."""
    speakers = "unknown speakers" if said["speakers"] is None else f"{said['speakers']} speakers"
    lines = [
        f"{said['study']}: {said['metric']} on {said['n']:,} utterances of {speakers}, base {said['base']}",
        "",
        *table(scored, beside),
        "",
        *_wrapped(said["findings"]),
        "",
        *_transfer(said),
        *_wrapped(said["notes"]),
    ]
    return "\n".join(lines) + "\n"


def _wrapped(sentences: Sequence[str]) -> list[str]:
    return [line for sentence in sentences for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")]


# --------------------------------------------------------------------------------------------------- sentences


def findings(scored: "Scored") -> list[str]:
    """One sentence a question, then what a simpler row does better than everything tuned."""
    asked = (_sentence(q, scored) for q in scored.questions if q.asked)
    return [*asked, *_gaps(scored), *_following(scored), *_simpler(scored)]


def _following(scored: "Scored") -> list[str]:
    """What rows answered whose labels stood under each other's names: by the definitions shown, or by the names."""
    lines = []
    for row in scored.rows:
        if any(FOLLOWING not in r["counts"] for run in row.cell() for r in run):
            continue
        try:
            at = interval(row.cell(), FOLLOWING, confidence=scored.confidence, subsets=row.drawn())
        except ValueError:  # no answer was either
            lines.append(f"{row.name}: no answer followed a definition or a name.")
            continue
        said = f"{number(at.value)} ({number(at.ci_low)}–{number(at.ci_high)})"
        lines.append(f"{row.name} follows the definition shown, not the label's own name, in {said} of its answers.")
    return lines


def _gaps(scored: "Scored") -> list[str]:
    """The text–speech gap of every cell that was also scored on its transcripts."""
    rows = {row.name: row for row in scored.rows}
    lines = []
    for twin in scored.rows:
        spoken = rows.get(twin.name.removesuffix(", text twin"))
        if twin.scheme != "text twin" or spoken is None:
            continue
        subsets = (spoken.drawn(), twin.drawn())
        c = compare(
            spoken.cell(), twin.cell(), scored.metric.name, confidence=scored.confidence, subsets=subsets
        )  # fmt: skip
        gap, low, high = (number(x, sign=True) for x in (c.effect, c.ci_low, c.ci_high))
        lines.append(f"{spoken.name} on transcripts instead of speech: {gap} ({low} to {high}).")
    return lines


def _transfer(said: Mapping[str, Any]) -> list[str]:
    """What every row reaches in every language of the test, where there are several; intervals, durations and slots are
    in `report.json` alone."""
    if not (matrix := said["transfer"]):
        return []
    tested, rows = matrix["languages"], matrix["rows"]
    counts = ", ".join(f"{cell['language']} {cell['n']:,}" for cell in rows[0]["languages"])
    about = [f"{said['metric']} by language (utterances): {counts}. In brackets: not trained on; unseen: their mean."]
    lines = [["row", *tested, "mean", "unseen"]]
    for row in rows:
        bare = row["trained_on"]
        values = [(number(_known(cell["value"])), cell["seen"] or not bare) for cell in row["languages"]]
        means = [number(_known(row[key])) for key in ("mean", "unseen")]
        lines.append([row["row"], *(value if seen else f"({value})" for value, seen in values), *means])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    name = max(NARROWEST_NAME, min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(tested) - 4))
    cut = [line[0] if len(line[0]) <= name else line[0][: name - 1] + "…" for line in lines]
    printed = [
        "  ".join([text.ljust(name), *(text.rjust(wide) for text, wide in zip(line[1:], widths[1:], strict=True))])
        for text, line in zip(cut, lines, strict=True)
    ]
    return [*_wrapped(about), "", printed[0], "─" * max(map(len, printed)), *printed[1:], ""]


def _known(value: float | None) -> float:
    """JSON's null is no value."""
    return math.nan if value is None else value


def _sentence(q: "Question", scored: "Scored") -> str:
    c = q.answer
    if c.verdict == "no evidence":
        effect, low, high = (number(x, sign=True) for x in (c.effect, c.ci_low, c.ci_high))
        return f"{q.b.name} against {q.a.name}: no evidence of a difference ({effect}, {low} to {high})."
    winner, loser = (q.b, q.a) if c.verdict == "better" else (q.a, q.b)
    low, high = sorted((abs(c.ci_low), abs(c.ci_high)))
    unit = "" if scored.metric.higher_is_better else f" less {scored.metric.name}"
    size = f"{number(abs(c.effect))}{unit} ({number(low)}–{number(high)})"
    unlike = ""
    if winner.recordings != loser.recordings:
        unlike = f", with {winner.recordings:,} against {loser.recordings:,} recordings"
    doubt = "; not after Holm's adjustment" if q.p_holm > 1 - scored.confidence else ""
    return f"{winner.name} beats {loser.name} by {size}{unlike}{doubt}."


def _simpler(scored: "Scored") -> list[str]:
    """Controls whose value no cell reaches that had no more recordings than they. A text twin is not simpler than
    what answers speech, but easier."""
    lines = []
    sign = 1 if scored.metric.higher_is_better else -1
    for control in scored.baselines():
        # What is trained on nothing (majority, untuned) is simpler than any cell; a probe on many recordings
        # proves nothing against a cell on few.
        rivals = [
            row
            for row in scored.rows
            if row.kind == "cell" and not row.apart and (not control.recordings or row.recordings <= control.recordings)
        ]
        if not rivals:
            continue
        best = max(rivals, key=lambda row: sign * scored.pooled[row.name].value)
        value, top = scored.pooled[control.name].value, scored.pooled[best.name].value
        if sign * value > sign * top:
            pair = {control.name, best.name}
            answers = [q.answer for q in scored.questions if {q.a.name, q.b.name} == pair]
            chance = "; it may be chance" if any(a.verdict == "no evidence" for a in answers) else ""
            few = f" on at most {control.recordings:,} recordings" if control.recordings else ""
            lines.append(
                f"{control.name} is better than every tuned row{few}: {number(value)}, the best of them "
                f"({best.name}) {number(top)}{chance}."
            )
    return lines


def methods(scored: "Scored") -> list[str]:
    """How the rows' intervals were made; degrees of freedom differ and stay with each row."""
    return sorted({re.sub(r", [\d.]+ degrees of freedom", "", at.method) for at in scored.pooled.values()})


def questions_note(scored: "Scored") -> list[str]:
    """Under which condition the rows are that name none, and that several questions were asked, where that is so."""
    asked = sum(q.asked for q in scored.questions)
    main = next((row.shots for row in scored.rows if not row.apart and row.shots is not None), None)
    told = []
    if main is not None and any(row.apart for row in scored.rows):
        which = "Rows that do not say how they were tested are the main ones"
        told.append(f"{which}: {main} demonstrations before every query.")
    if asked > 1:
        told.append(
            f"{asked} questions were asked; each verdict is for its question alone, and its sentence says where it "
            "does not survive Holm's adjustment for all of them."
        )
    return told


# ------------------------------------------------------------------------------------------------------- table


def table(scored: "Scored", beside: Sequence[str] = ()) -> list[str]:
    """Lines of at most WIDTH columns. The rows' names get what they need up to NAME columns: where there is too
    little room, a scheme that every cell's name begins with is left out, then metrics of `beside` from the last one
    on; only then are names cut."""
    words = [(row.name.replace("_", " "), row.scheme.replace("_", " "), row.kind) for row in scored.rows]
    schemes = any(scheme not in name for name, scheme, _ in words)
    spare = all(name.startswith(scheme) for name, scheme, kind in words if kind == "cell")
    shown = list(beside)
    while True:
        lines = _columns(scored, shown, schemes)
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        # The reference's name is said in full by its own row, so its column heading may be cut.
        widths[-2] = max(len("− reference"), *(len(line[-2]) for line in lines[1:]))
        room = WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)
        if room >= min(widths[0], NAME) or not (shown or (schemes and spare)):
            break
        if schemes and spare:
            schemes = False
        else:
            shown.pop()
    widths[0] = min(widths[0], max(NARROWEST_NAME, room))
    widths[-2] += max(0, min(len(lines[0][-2]) - widths[-2], room - widths[0]))
    right = range(1 + schemes, 3 + schemes)

    def fit(text: str, k: int) -> str:
        if len(text) > widths[k]:
            text = text[: widths[k] - 1] + "…"
        return text.rjust(widths[k]) if k in right else text.ljust(widths[k])

    printed = ["  ".join(fit(text, k) for k, text in enumerate(line)).rstrip() for line in lines]
    return [printed[0], "─" * max(map(len, printed)), *printed[1:]]


def _columns(scored: "Scored", beside: Sequence[str], schemes: bool) -> list[list[str]]:
    """The table's texts, its heading first."""
    percent = f"{100 * scored.confidence:.4g} %"
    heading = ["row", *["scheme"][:schemes], "rec.", "shown", f"{scored.metric.name} ({percent})", *beside]
    lines = [[*heading, f"− {scored.reference.name}", "verdict"]]
    for row in scored.rows:
        at = scored.pooled[row.name]
        values = score(r for run in row.cell() for r in run) if beside else {}
        lent = f"+{row.source_recordings:,}" if row.source_recordings else ""
        heard = [f"{row.recordings:,}{lent}" if row.recordings or lent else "–"]
        heard.append(f"{row.speech_presentations:.3g}x" if row.speech_presentations else "–")
        lines.append([
            row.name, *[row.scheme][:schemes], *heard,
            f"{number(at.value)} ({number(at.ci_low)}–{number(at.ci_high)})",
            *(number(values.get(name, math.nan)) for name in beside), *_difference(row, scored),
        ])  # fmt: skip
    return lines


def _difference(row: "ReportRow", scored: "Scored") -> list[str]:
    """[row − reference with its interval, verdict], whichever way round the question was asked."""
    if row is scored.reference:
        return ["–", "reference"]
    pair = {row.name, scored.reference.name}
    q = next(q for q in scored.questions if {q.a.name, q.b.name} == pair)
    effect, low, high, verdict = q.answer.effect, q.answer.ci_low, q.answer.ci_high, str(q.answer.verdict)
    if q.a is row:
        effect, low, high = -effect, -high, -low
        verdict = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    return [f"{number(effect, sign=True)} ({number(low, sign=True)} to {number(high, sign=True)})", verdict]
