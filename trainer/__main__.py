"""`python -m trainer SPEC.yaml --out DIR [--ranks N]`: one job or one study, without any service.

`python -m trainer compose …` puts a base together from parts (`trainer.families.composed.compose`); `python -m trainer
active …` measures what a tuned model hears worst (`trainer.active`).

Run again with the same folder, it goes on from the newest whole checkpoint. Exit codes: 0 done, 1 failed or
stopped, 2 the spec or its data cannot run as written; the reason is printed and stored.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from trainer.bases import BaseError
from trainer.fields import SpecError, problem
from trainer.manifest import ManifestError
from trainer.predictions import in_words
from trainer.ranks import Ranks, spawn
from trainer.resolve import read_and_resolve
from trainer.result import Result, leave_refusal
from trainer.spec import JobSpec
from trainer.store import StoreError, open_store
from trainer.study import StudySpec, load
from trainer.terminal import Limit, Stop, one_rank, run_resolved
from trainer.tokens import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compose"]:
        return _compose(arguments[1:])
    if arguments[:1] == ["active"]:
        from trainer.active import main as active

        return active(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Train and score one job or study.",
        epilog="python -m trainer compose …: put a base together from an encoder, a projector and a language model. "
        "python -m trainer active …: measure what a tuned model hears worst. Each has a --help of its own.",
    )  # fmt: skip
    parser.add_argument("spec", type=Path, help="job or study, YAML or JSON")
    parser.add_argument("--out", required=True, help="folder or s3://bucket/prefix for all that is left behind")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share each step (gloo)")
    parser.add_argument("--data-root", action="append", default=[], help="folder of data sets (repeatable)")
    options = parser.parse_args(arguments)
    roots = [*options.data_root, ".", str(options.spec.parent)]
    spec = resolved = None
    try:
        spec = load(options.spec)
        if isinstance(spec, StudySpec):
            return _study(spec, options, roots)
        if not isinstance(spec, JobSpec):
            raise problem("suite", "running suites needs the service and is not built yet; run one of its jobs")
        resolved, corpus = read_and_resolve(spec, roots)  # a bad spec is said once, before processes start
        if options.ranks > 1:
            spawn(one_rank, options.ranks, spec, options.out, roots)
            result = newest_result(options.out)
        else:
            result = run_resolved(Ranks(), resolved, corpus, options.out)
    except (SpecError, StoreError, BaseError, DataError, ManifestError) as error:
        print(error, file=sys.stderr)
        if resolved is None:  # else run() leaves the result
            name = getattr(spec, "name", None) or getattr(spec, "study", None) or options.spec.stem
            leave_refusal(options.out, name, error, spec if isinstance(spec, JobSpec) else None)
        return 2
    except (OSError, BotoCoreError, ClientError) as error:  # a disk or an S3 service; where it can, run() stores why
        print(f"--out {options.out}: cannot be written or read: {error}; nothing finished is lost", file=sys.stderr)
        return 1
    _say(result, options.out)
    return {"succeeded": 0}.get(result.outcome, 2 if result.reason == "invalid_spec" else 1)


def _compose(arguments: Sequence[str]) -> int:
    from trainer.families.composed.compose import main as compose

    try:
        return compose(arguments)
    except (ValueError, OSError) as error:  # a BaseError, or what transformers says of a folder
        print(error, file=sys.stderr)
        return 2


def newest_result(out: str) -> Result:
    """`final.json`, else the result of the highest attempt."""
    store = open_store(out)
    if store.exists("final.json"):
        return Result.model_validate_json(store.get("final.json"))
    numbers = {int(k.split("/")[1]) for k in store.list("attempts/") if k.endswith("/result.json")}
    return Result.model_validate_json(store.get(f"attempts/{max(numbers)}/result.json"))


def _study(spec: StudySpec, options: argparse.Namespace, roots: Sequence[str]) -> int:
    from trainer.run_study import StudyFailedError, run_study

    if options.ranks > 1:
        raise problem("--ranks", "a study runs in one process; leave --ranks out", options.ranks)
    try:
        report = run_study(spec, options.out, roots, Stop(Limit(None)))
    except StudyFailedError as error:
        print(error, file=sys.stderr)
        return 1
    print(report.text)
    print("\n".join(str(path) for path in report.files))
    return 0


def _say(result: Result, out: str) -> None:
    if result.outcome != "succeeded":
        print(f"{result.name}: {result.reason} after {result.steps} of {result.planned_steps} steps: {result.message}")
        return
    for s in result.scores:
        put = in_words(s.model_dump())
        print(f"{put:8} {s.task:16} {s.metric:16} {s.value:6.3f} [{s.ci_low:.3f}, {s.ci_high:.3f}]  n={s.n}")
    for g in result.guards:
        print(
            f"guard {g.data}: {g.task} {g.metric} {g.before:.3f} before, {g.after:.3f} after, "
            f"change {g.change:+.3f} [{g.ci_low:+.3f}, {g.ci_high:+.3f}]  n={g.n}"
        )
    print(f"adapter: {out}/{result.checkpoint}/adapter")


if __name__ == "__main__":
    sys.exit(main())
