"""How the front door prints what the service says. Nothing is decided here."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from trainer.predictions import in_words
from trainer.validate import Issue

Json = Mapping[str, Any]


def dump(data: Any) -> None:
    """For programs."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def _columns(rows: Iterable[Sequence[str]]) -> None:
    """Rows of words, each column as wide as its widest."""
    table = [list(row) for row in rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))] if table else []
    for row in table:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def jobs(page: Json) -> None:
    """A page of jobs, one a line."""
    if not page["data"]:
        print("no jobs")
        return
    head = ("job", "status", "step", "score", "created", "name")
    _columns([head, *((j["id"], j["status"], _step(j), _score(j), _when(j["created_at"]), j["name"])
                      for j in page["data"])])  # fmt: skip
    if page["has_more"]:
        print(f"… and more: attune jobs --after {page['last_id']}")


def _step(job: Json) -> str:
    progress = job["progress"]
    return f"{progress['step'] or 0}/{progress['steps']}" if progress["steps"] else "–"


def _score(job: Json) -> str:
    """The main metric on speech, or on what there is."""
    found = [s for s in job["scores"] if s["metric"] == job["metric"]]
    found.sort(key=lambda s: s["modality"] != "speech")
    return _interval(found[0]) if found else "–"


def _interval(at: Json) -> str:
    return f"{at['value']:.3f} ({at['ci_low']:.3f}–{at['ci_high']:.3f})"


def _when(at: int | None) -> str:
    return "–" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def job_line(job: Json) -> str:
    """A job's status in one line."""
    why = ": ".join(part for part in (job["reason"], job["message"]) if part)
    score = _score(job)
    said = f", {job['metric']} {score}" if score != "–" else ""
    return f"{job['name']} ({job['id']}): {job['status']}{said}{f' ({why})' if why else ''}"


def job(found: Json) -> None:
    """A job in full: where it is, its attempts, its scores, its spec."""
    print(job_line(found))
    wanted = "" if found["wanted"] == "run" else f", wanted: {found['wanted']}"
    print(
        f"step {_step(found)}, priority {found['priority']}{wanted}, spec_hash {found['spec_hash'] or 'not known yet'}"
    )
    print(f"created {_when(found['created_at'])}, started {_when(found['started_at'])}, "
          f"finished {_when(found['finished_at'])}")  # fmt: skip
    for a in found["attempt_list"]:
        why = f" ({a['reason']}: {a['message']})" if a["reason"] else ""
        print(f"  attempt {a['no']}: {a['status']} at step {a['step']}{why}")
    for s in found["scores"]:
        print(f"  {s['task']} {s['metric']} on {in_words(s)}: {_interval(s)}, {s['n']} utterances")
    print("\nas it was sent")
    print(yaml.safe_dump(found["spec"], sort_keys=False, allow_unicode=True, width=110).rstrip())


def event_line(event: Json) -> str:
    """A line of a job's history."""
    at = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
    attempt = f" attempt {event['attempt']}" if event["attempt"] else ""
    data = {k: v for k, v in event["data"].items() if k not in ("at", "message", "traceback")}
    message = event["data"].get("message", "")
    said = " ".join(f"{key}={value}" for key, value in data.items() if not isinstance(value, dict | list))
    return f"{at}{attempt} {event['type']} {said}{': ' if said and message else ''}{message}".rstrip()


def plan(found: Json) -> None:
    """What a job would do."""
    print(f"{found['steps']} steps, {found['examples']} examples, spec_hash {found['spec_hash']}")
    for name, s in found["sources"].items():
        tokens = "" if s.get("tokens") is None else f", {s['tokens']:,} tokens"
        print(f"  {name}: {s['rows']} rows as {s['modality']}, {s['presentations']} presentations{tokens}")
    for device, seconds in found["seconds"].items():
        answering = f"{found['answering_s'][device] / 60:.0f} min of answering the test"
        print(f"  about {seconds / 60:.0f} min of training and {answering}, {found['memory_gib'][device]:.1f} GiB, "
              f"on {device} (rough)")  # fmt: skip
    print(f"  test: {found['test_utterances']} utterances; a true difference below about "
          f"{found['smallest_difference']:.1%} would probably not show")  # fmt: skip
    for note in found["notes"]:
        print(f"  note: {note}")


def study_plan(cells: Mapping[str, Json]) -> None:
    """What every cell of a study would do."""
    for name, found in cells.items():
        print(f"== {name}: {found['runs']} run(s)")
        plan(found)


def studies(page: Json) -> None:
    """A page of studies, one a line."""
    if not page["data"]:
        print("no studies")
        return
    counted = ((s, ", ".join(f"{n} {status}" for status, n in s["jobs"].items())) for s in page["data"])
    _columns([("study", "created", "name", "jobs"),
              *((s["id"], _when(s["created_at"]), s["name"], jobs) for s, jobs in counted)])  # fmt: skip


def study(found: Json, table: Json) -> None:
    """A study: its rows with intervals as far as they are known, what follows from them, what failed."""
    counts = ", ".join(f"{count} {status}" for status, count in found["jobs"].items())
    print(f"study {found['name']} ({found['id']}): {counts}")
    if table["ranks"]:
        _columns([("row", "mean rank", *table["tasks"]),
                  *((r["row"], f"{r['mean_rank']:.2f}", *(_ranked(r["tasks"].get(t)) for t in table["tasks"]))
                    for r in table["ranks"])])  # fmt: skip
        print(f"{table['task']}:")
    head = ("row", "recordings", "runs", f"{table['metric'] or 'score'} ({table['confidence']:.0%})")
    rows = [(r["name"], f"{r['recordings']:,}", f"{r['runs_done']}/{r['runs']}",
             "–" if r["value"] is None else _interval(r)) for r in table["rows"]]  # fmt: skip
    _columns([head, *rows])
    for sentence in table["findings"]:
        print(f"- {sentence}")
    lost(table)
    for note in table["notes"]:
        print(f"note: {note}")


def _ranked(at: Json | None) -> str:
    """A value and its rank among the rows."""
    return f"{at['value']:.3f} [{at['rank']:g}]" if at else "–"


def lost(table: Json) -> None:
    """The jobs that a study is without, and why."""
    for job in table["failed"]:
        why = f"{job['status']} ({job['reason']}: {job['message']})"
        print(f"{job['row']} seed {job['seed']} ({job['job_id']}): {why}")


def datasets(page: Json) -> None:
    """A page of data sets, one a line."""
    if not page["data"]:
        print("no data sets")
        return
    _columns([("dataset", "status", "rows", "errors", "created", "name"),
              *((d["id"], d["status"], _count(d["rows"]), _count(d["errors"]), _when(d["created_at"]), d["name"])
                for d in page["data"])])  # fmt: skip


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def dataset(found: Json) -> None:
    """A data set with the report of its validation, a line per problem."""
    print(f"{found['name']} ({found['id']}): {found['status']}, {_count(found['rows'])} rows, "
          f"{_count(found['errors'])} errors, {_count(found['warnings'])} warnings")  # fmt: skip
    report = found["report"] or {}
    if message := report.get("message"):
        print(message)
    for name, part in report.get("manifests", {}).items():
        for issue in part["issues"][:50]:
            print(f"  {name} {Issue(**issue)}")
        if len(part["issues"]) > 50:
            print(f"  … and {len(part['issues']) - 50} more; --json prints all")
    if found["status"] == "ready":
        print(f"in a spec: data: {{speech: {found['id']}}}")


def comparison(found: Json) -> None:
    """b against a."""
    for side in ("a", "b"):
        at = found[side]
        print(f"{side}: {', '.join(at['jobs'])}  {found['metric']} {_interval(at)}, {at['n']} utterances")
    print(f"b - a: {found['effect']:+.3f} ({found['ci_low']:+.3f} to {found['ci_high']:+.3f}), p {found['p']:.3g}: "
          f"{found['verdict']}")  # fmt: skip
    print(f"{found['confidence']:.0%} intervals: {found['method']}; {found['n_blocks']} {found['block']}s")
