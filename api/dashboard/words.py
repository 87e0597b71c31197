"""Statuses, reasons and events as sentences; numbers and times as people read them. Pure."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from db.status import TERMINAL, Command, IllegalCommand, command
from trainer.predictions import in_words
from trainer.report_text import number

REASONS = {
    "invalid_data": "the data do not fit",
    "invalid_spec": "the spec cannot run",
    "out_of_memory": "out of memory",
    "diverged": "training diverged",
    "infrastructure": "the machine or its network failed",
    "lost_heartbeat": "the runner went silent",
    "stalled": "no progress any more",
    "timeout": "the time limit was reached",
    "yielded": "left at a checkpoint",
    "user": "asked for by a user",
}

STATES = {
    "claimed": "a runner has taken it",
    "loading": "loading base and data",
    "training": "training",
    "evaluating": "scoring the test set",
}


def reason(word: str | None) -> str:
    """A reason in words; one that is not known here as it stands."""
    return "" if word is None else REASONS.get(word, word.replace("_", " "))


def situation(job: Mapping[str, Any]) -> str:
    """Where a job (as the API shows it) is, in one sentence."""
    why = reason(job["reason"])
    match job["status"]:
        case "validating":
            return "Spec, base and data are being checked."
        case "queued":
            return f"Waits for a runner to go on: {why}." if why else "Waits for a runner."
        case "running":
            state, stage = job["progress"]["state"] or "claimed", job["progress"]["stage"]
            said = STATES.get(state, state) + (f", stage {stage}" if stage and state == "training" else "")
            asked = "a cancel was asked for; until the next step: " if job["wanted"] == "cancel" else ""
            return f"{cap(asked + said)}."
        case "pausing":
            return "Writes a checkpoint, then pauses."
        case "paused":
            return "Paused; resume goes on from the last checkpoint."
        case "finalizing":
            return "Its results are being collected."
        case "succeeded":
            return "Done."
        case status:
            return f"{cap(status)}: {why}." if why else f"{cap(status)}."


def event(kind: str, data: Mapping[str, Any]) -> str:
    """What happened, in one sentence."""
    get = data.get
    match kind:
        case "job.created":
            return f"Submitted as “{get('name', '')}”"
        case "job.status":
            return "Now " + ": ".join(x for x in (str(get("status")), reason(get("reason")), get("message")) if x)
        case "job.cancel" | "job.pause" | "job.resume":
            return f"Asked to {kind.removeprefix('job.')}"
        case "attempt.training":
            return f"Training from step {get('step', 0)} of {get('steps', '?')}"
        case "attempt.ended":
            ended = f"Attempt {get('outcome')}" + (f" at step {get('step')}" if get("step") else "")
            return ": ".join(x for x in (ended, reason(get("reason")), get("message")) if x)
        case "validation.started":
            return "Checking spec, base and data" + (f", try {get('try')}" if get("try", 1) != 1 else "")
        case "checkpoint":
            return f"Checkpoint after step {get('step')}"
        case "predicted":
            return f"{get('utterances')} predictions on {get('modality')}"
        case "dev":
            return f"Dev set after step {get('step')}: {get('metric')} {get('value', 0):.3f}"
        case "note":
            return cap(str(get("message", "")))
        case "error":
            return ": ".join(str(x) for x in (cap(reason(get("reason")) or "error"), get("message")) if x)
    if kind.startswith("attempt."):
        state = kind.removeprefix("attempt.")
        return cap(STATES.get(state, state))
    return ", ".join(f"{key} {value}" for key, value in data.items() if key != "at") or kind


def actor(who: str, key_names: Mapping[str, str]) -> str:
    """Who did it: a key by its name, a runner by the end of its id."""
    kind, _, name = who.partition(":")
    if kind == "user":
        return f"key {key_names.get(name, name)}"
    return f"runner …{name[-6:]}" if kind == "runner" else who


def cap(text: str) -> str:
    """With a capital first letter; the rest stays."""
    return text[:1].upper() + text[1:]


# --------------------------------------------------------------------------------------------- numbers and times


def span(seconds: float | None) -> str:
    """A duration: '40 s', '12 min', '3 h 20 min', '5 days'."""
    if seconds is None:
        return "–"
    s = max(0, round(seconds))
    if s < 90:
        return f"{s} s"
    if s < 5400:
        return f"{round(s / 60)} min"
    if s < 2 * 86400:
        hours, minutes = divmod(round(s / 60), 60)
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    return f"{round(s / 86400)} days"


def iso(at: float) -> str:
    """A time for <time datetime>; the reader's zone is the browser's affair."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(at: float) -> str:
    """A time for readers without JavaScript."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def score(value: Mapping[str, Any] | None) -> str:
    """'.56 (.47–.65)': a value with its 95 % interval."""
    if value is None:
        return ""
    low, high = value.get("ci_low"), value.get("ci_high")
    interval = "" if low is None or high is None or low == high else f" ({number(low)}–{number(high)})"
    return number(value["value"]) + interval


def difference(c: Mapping[str, Any]) -> str:
    """'+.05 (+.01 to +.09)': a difference with its 95 % interval."""
    effect, low, high = (number(c[k], sign=True) if c[k] is not None else "–" for k in ("effect", "ci_low", "ci_high"))
    return f"{effect} ({low} to {high})"


def main_score(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The score of the job's main metric, on speech where there is one."""
    found = [s for s in job["scores"] if s["metric"] == job["metric"]]
    return next((s for s in found if s.get("modality") == "speech"), found[0] if found else None)


def spark(curve: Sequence[Sequence[float]]) -> str:
    """A curve's points for a picture of 100 by 24, on the scale of its own lowest and highest."""
    values = [value for _, value in curve]
    if len(values) < 2:
        return ""
    low, first, wide = min(values), curve[0][0], curve[-1][0] - curve[0][0]
    high = max(values)
    scale = 20 / (high - low) if high > low else 0
    return " ".join(f"{100 * (step - first) / wide:.1f},{2 + scale * (high - v):.1f}" for step, v in curve)


def left(job: Mapping[str, Any], step_seconds: float | None) -> float | None:
    """Seconds until the last step at the present pace; None where there is no pace."""
    p = job["progress"]
    if job["status"] != "running" or p["state"] != "training" or not step_seconds or not p["steps"]:
        return None
    return (p["steps"] - (p["step"] or 0)) * step_seconds


def commands(job: Mapping[str, Any], may: bool) -> Sequence[tuple[Command, str | None]]:
    """The buttons, each with the reason why it is disabled (None: it may be pressed)."""
    asked: tuple[Command, ...] = ("pause", "resume", "cancel")
    return [(c, _refusal(c, job) if may else "this key may only read") for c in asked]


def _refusal(asked: Command, job: Mapping[str, Any]) -> str | None:
    try:
        after = command(asked, job["status"])
    except IllegalCommand as illegal:
        return str(illegal)
    if after == (job["wanted"], job["status"]) or job["status"] in TERMINAL:
        return "nothing to resume" if asked == "resume" else f"{asked} was asked for already"
    return None


FILTERS: dict[str, Callable[..., Any]] = {
    "reason": reason, "situation": situation, "event_words": event, "span": span, "iso": iso, "utc": utc,
    "score": score, "difference": difference, "main_score": main_score, "spark": spark,
    "number": number, "cap": cap, "in_words": in_words,
}  # fmt: skip
"""What templates may use."""
