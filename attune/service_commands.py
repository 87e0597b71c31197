"""Commands that speak with the service. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. With `--json`
stdout is for programs; an error then is the service's `{"error": …}`. The client is loaded when a command needs it."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune import completion, show_jobs, tiny
from attune.errors import AttuneError, UnavailableError
from attune.home import LocalError

if TYPE_CHECKING:
    from attune.client import Client

Parser = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], int]
Command = Callable[[str, Run | None, str], Parser]
RootsOf = Callable[[argparse.Namespace], list[Path]]

ENDED = ("succeeded", "failed", "cancelled")
STATUSES = ("validating", "queued", "running", "pausing", "paused", "finalizing", *ENDED)


def add(parser: Parser, command: Command, roots: Callable[[Parser], None], roots_of: RootsOf) -> None:
    """Register the commands with `parser`. `command` makes one, `roots` gives it `--data-root`, `roots_of` reads it."""
    sub = command("submit", _served(lambda client, args: _submit(client, args, roots_of(args))),
                  "send a job or study to the service")  # fmt: skip
    sub.add_argument("spec", type=Path, help="job or study (YAML or JSON)")
    sub.add_argument("--watch", action="store_true", help="stay and follow it")
    sub.add_argument("--dry-run", action="store_true", help="print what it would do, and submit nothing")
    sub.add_argument("--idempotency-key", metavar="KEY", help="the same key and spec twice is one job")
    tiny.option(sub)
    _out(sub)
    roots(sub)
    as_json(sub)
    sub = command("watch", _served(_watch), "follow a job or study; Ctrl-C leaves it running")
    sub.add_argument("id", metavar="JOB|STUDY")
    _out(sub)
    as_json(sub)
    sub = command("jobs", _served(_jobs), "list jobs, newest first")
    sub.add_argument("--status", action="append", choices=STATUSES, help="only these (repeat for several)")
    sub.add_argument("--study", metavar="STUDY", help="only jobs of this study")
    sub.add_argument("--name", help="part of the name")
    sub.add_argument("--after", metavar="JOB", help="the page behind this job")
    sub.add_argument("--limit", type=int, default=20, help="jobs a page, at most 100 (default 20)")
    as_json(sub)
    sub = command("job", _served(_job), "show a job: status, attempts, scores, spec")
    sub.add_argument("id", metavar="JOB")
    as_json(sub)
    for name, help_ in (
        ("cancel", "end jobs, or all jobs of a study"),
        ("pause", "have jobs write a checkpoint and wait"),
        ("resume", "let paused jobs go on"),
    ):
        sub = command(name, _served(_order), help_)
        sub.add_argument("ids", nargs="+", metavar="JOB|STUDY" if name == "cancel" else "JOB")
        as_json(sub)
    sub = command("study", _served(_study), "show a study's table as far as it goes; without an id list studies")
    sub.add_argument("id", nargs="?", metavar="STUDY")
    _out(sub)
    as_json(sub)
    sub = command("compare", _served(_compare), "is B better than A? the difference with its interval")
    for side in ("a", "b"):
        sub.add_argument(side, metavar=side.upper(), help="job, or the jobs of a cell's seeds separated by commas")
    sub.add_argument("--metric", help="default: the main one of A")
    sub.add_argument("--task", help="which, where the test has several")
    sub.add_argument("--modality", choices=("speech", "text", "cascade"), help="default: speech where it was scored")
    as_json(sub)
    sub = command("logs", _served(_logs), "print a job's history")
    sub.add_argument("id", metavar="JOB")
    as_json(sub)
    sub = command("datasets", _served(_datasets), "list data sets, show one with its report, or add one")
    sub.add_argument("id", nargs="?", metavar="DATASET")
    source = sub.add_mutually_exclusive_group()
    source.add_argument("--upload", type=Path, metavar="PATH", help="add this folder, or archive of one, by sending it")
    source.add_argument("--uri", metavar="REF", help="add what the service finds under this reference")
    sub.add_argument("--name", help="name of what is added (default: its own)")
    as_json(sub)
    sub = command("completion", lambda args: _completion(parser, args), "print a script that completes commands")
    sub.add_argument("shell", choices=completion.SHELLS, help="e.g. source <(attune completion bash)")


def _out(sub: Parser) -> None:
    sub.add_argument("--out", type=Path, metavar="DIR", help="write the study's report and chart there at its end")


def as_json(sub: Parser) -> None:
    """`--json`."""
    sub.add_argument("--json", action="store_true", help="machine-readable output")


def _served(work: Callable[["Client", argparse.Namespace], int]) -> Run:
    """A command that needs the service."""

    def run(args: argparse.Namespace) -> int:
        try:
            from attune.client import Client
        except ModuleNotFoundError as error:
            return failed(args, f"{error.name} is not installed: pip install 'attune[service]'")
        try:
            with Client() as client:
                return work(client, args)
        except AttuneError as error:
            return failed(args, error.message, error.to_json(), 1 if isinstance(error, UnavailableError) else 2)
        except LocalError as error:
            return failed(args, str(error))

    return run


def failed(args: argparse.Namespace, message: str, error: Any = None, code: int = 1) -> int:
    """Say why a command failed; returns its exit code."""
    print(f"attune {args.command}: {message}", file=sys.stderr)
    if getattr(args, "json", False):
        show_jobs.dump(error or {"error": {"message": message, "type": "local_error", "param": None, "code": None}})
    return code


# ---- submit, watch


def _submit(client: "Client", args: argparse.Namespace, roots: Sequence[Path]) -> int:
    from attune.places import absolute
    from trainer.fields import problem
    from trainer.study import StudySpec
    from trainer.suite import Suite

    spec, parsed = tiny.read(args.spec, small=args.tiny)
    if isinstance(parsed, Suite):
        raise problem("suite", "running suites is not built yet; submit one of its jobs")
    changed = {}
    if client.local:  # it sees this machine's files, but not from this folder
        spec, changed = absolute(spec, roots)
    for field, place in changed.items():
        print(f"{field}: sent as {place}", file=sys.stderr)
    kind = client.studies if isinstance(parsed, StudySpec) else client.jobs
    made = kind.create(spec, idempotency_key=args.idempotency_key, dry_run=args.dry_run)
    if args.json:
        show_jobs.dump({"spec": spec, ("plan" if args.dry_run else made["object"]): made})
    elif args.dry_run:
        (show_jobs.study_plan if isinstance(parsed, StudySpec) else show_jobs.plan)(made)
    else:
        print(made["id"])
    return _follow(client, args, made["id"], from_start=True) if args.watch and not args.dry_run else 0


def _watch(client: "Client", args: argparse.Namespace) -> int:
    return _follow(client, args, args.id)


def _follow(client: "Client", args: argparse.Namespace, id_: str, *, from_start: bool = False) -> int:
    """Until it has ended: 0 where all went well, 1 where not."""
    from attune.watch import watch_job, watch_study

    study, shown = id_.startswith("study-"), not args.json
    if study:
        items = watch_study(client, id_, shown=shown)
    else:
        items = watch_job(client, id_, from_start=from_start, shown=shown)
    statuses = {}
    try:
        for item in items:
            if item["object"] == "job":
                statuses[item["id"]] = item["status"]
            if args.json:
                print(json.dumps(item, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:
        print(f"{id_} goes on; `attune watch {id_}` looks again, `attune cancel {id_}` ends it", file=sys.stderr)
        return 130
    if study:
        _tell_study(client, args, id_)
    elif not args.json:
        print(show_jobs.job_line(client.jobs.get(id_)))
    return 0 if set(statuses.values()) == {"succeeded"} else 1


# ---- looking, commands


def _jobs(client: "Client", args: argparse.Namespace) -> int:
    page = client.jobs.list(status=args.status, study=args.study, name=args.name, after=args.after, limit=args.limit)
    (show_jobs.dump if args.json else show_jobs.jobs)(page)
    return 0


def _job(client: "Client", args: argparse.Namespace) -> int:
    (show_jobs.dump if args.json else show_jobs.job)(client.jobs.get(args.id))
    return 0


def _order(client: "Client", args: argparse.Namespace) -> int:
    """cancel, pause, resume: of several, all are tried."""
    done, failed = [], None
    for id_ in args.ids:
        kind = client.studies if args.command == "cancel" and id_.startswith("study-") else client.jobs
        try:
            done.append(getattr(kind, args.command)(id_))
        except AttuneError as error:
            if len(args.ids) > 1:
                print(f"{id_}: {error.message}", file=sys.stderr)
            failed = error
    if args.json:
        show_jobs.dump(done)
    else:
        for item in done:
            what = item["status"] if item["object"] == "job" else ", ".join(f"{n} {s}" for s, n in item["jobs"].items())
            print(f"{item['id']}: {what}")
    if failed is not None and len(args.ids) == 1:
        raise failed
    return 0 if failed is None else 2


def _study(client: "Client", args: argparse.Namespace) -> int:
    if args.id is None:
        (show_jobs.dump if args.json else show_jobs.studies)(client.studies.list())
        return 0
    if args.json:
        show_jobs.dump({**client.studies.get(args.id), "table": client.studies.table(args.id)})
    _tell_study(client, args, args.id)
    return 0


def _tell_study(client: "Client", args: argparse.Namespace, id_: str) -> None:
    """The report of a study that has ended, the table of one that goes on; files where they are asked for."""
    study = client.studies.get(id_)
    ended = set(study["jobs"]) <= set(ENDED) and "succeeded" in study["jobs"]
    if not args.json and ended:
        print(client.studies.report(id_)["text"])
        show_jobs.lost(client.studies.table(id_))
    elif not args.json:
        show_jobs.study(study, client.studies.table(id_))
    if args.out is not None:
        from attune.study_report import write

        files = write(client.studies.report(id_), args.out)
        named = ", ".join(str(file.relative_to(args.out)) for file in files)
        print(f"{named} written to {args.out}", file=sys.stderr)
    if not args.json:
        print(f"dashboard: {client.url}/dashboard/studies/{id_}")


def _compare(client: "Client", args: argparse.Namespace) -> int:
    found = client.compare(args.a, args.b, metric=args.metric, modality=args.modality, task=args.task)
    (show_jobs.dump if args.json else show_jobs.comparison)(found)
    return 0


def _logs(client: "Client", args: argparse.Namespace) -> int:
    for event in client.jobs.events(args.id):
        if args.json:
            print(json.dumps(event, ensure_ascii=False))
        else:
            print(show_jobs.event_line(event))
            if trace := event["data"].get("traceback"):
                print(trace.rstrip())
    return 0


def _datasets(client: "Client", args: argparse.Namespace) -> int:
    given = args.upload or args.uri
    if args.id is None and not given:
        (show_jobs.dump if args.json else show_jobs.datasets)(client.datasets.list())
        return 0
    if given:
        made = client.datasets.create(args.name or Path(given).stem, uri=args.uri, upload=args.upload)
        found = client.datasets.wait(made["id"])
    else:
        found = client.datasets.get(str(args.id))
    (show_jobs.dump if args.json else show_jobs.dataset)(found)
    return 2 if found["status"] == "refused" else 0


def _completion(parser: Parser, args: argparse.Namespace) -> int:
    print(completion.script(parser, args.shell))
    return 0
