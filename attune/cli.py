"""`attune`: every command of the front door. Exit codes: 0 done, 1 failed, 2 bad input."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from attune import build_commands, data_commands, local_commands, service_commands, show, tiny
from attune.reference import markdown
from trainer.corpus import Reader, tasks_of
from trainer.fields import SpecError, problem
from trainer.resolve import read_and_resolve, resolve
from trainer.spec import JobSpec, json_schema
from trainer.study import StudySpec, expand, load
from trainer.suite import Suite
from trainer.validate import Report, validate_dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # the reader of our output has left, e.g. `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except (ValueError, OSError) as error:
        print(f"attune {args.command}: {_plural(error)}\n{error}", file=sys.stderr)
        if args.command == "run":
            from trainer.result import leave_refusal  # brings more than other commands need, so only here

            leave_refusal(args.out, args.spec.stem, error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _plural(error: Exception) -> str:
    count = len(error.problems) if isinstance(error, SpecError) else 1
    return "1 problem" if count == 1 else f"{count} problems"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attune", description="Fine-tune audio language models when labelled speech is scarce."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run)
        return sub

    for name, run, help_ in (
        ("validate", _validate, "check a spec and every row of its data; nothing is trained"),
        ("explain", _explain, "print every default and the recipe as stages"),
        ("plan", _plan, "print what would be trained: counts, tokens, time, memory, what the test can show"),
    ):
        sub = command(name, run, help_)
        also = {"validate": "; or a data set such as folder:train", "explain": "; several are explained in turn"}
        said = f"job, study or suite (YAML or JSON){also.get(name, '')}"
        if name == "explain":
            sub.add_argument("specs", nargs="+", type=Path, metavar="spec", help=said)
        else:
            sub.add_argument("spec", type=Path, help=said)
        sub.add_argument("--json", action="store_true", help="machine-readable output")
        _roots(sub)
        tiny.option(sub)
    sub = command("run", _run, "train and score a job or study on this machine")
    sub.add_argument("spec", type=Path)
    sub.add_argument("--out", required=True, help="folder (a job: also s3://…); an interrupted run is resumed")
    sub.add_argument("--ranks", type=_positive, default=1, help="processes that share every step (default 1)")
    _roots(sub)
    tiny.option(sub)
    sub = command("schema", _schema, "print the JSON Schema of a job")
    sub.add_argument("--markdown", action="store_true", help="print the spec reference instead")
    sub = command("check", _check, "hear whether a base understands this data, and what to expect")
    sub.add_argument("data", help="data set, e.g. folder:train")
    sub.add_argument("--base", required=True, help="hub id, folder or s3:// folder")
    sub.add_argument("--limit", type=_positive, default=100, help="utterances to listen to (default 100)")
    sub.add_argument("--json", action="store_true")
    _roots(sub)
    data_commands.add(command, _roots, roots_of)
    build_commands.add(command, _roots, roots_of)
    local_commands.add(command)
    service_commands.add(parser, command, _roots, roots_of)
    return parser


def _roots(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--data-root",
        action="append",
        default=[],
        help="folder that data references are relative to (also ATTUNE_DATA; default: here, then the spec's folder)",
    )


def roots_of(args: argparse.Namespace) -> list[Path]:
    """Folders in which data references are looked up, in order."""
    given = [Path(p) for p in args.data_root]
    given += [Path(p) for p in os.environ.get("ATTUNE_DATA", "").split(os.pathsep) if p]
    beside = [args.spec.parent] if hasattr(args, "spec") else []
    return [*given, Path("."), *beside]


def _validate(args: argparse.Namespace) -> int:
    roots = roots_of(args)
    if args.spec.suffix not in (".yaml", ".yml", ".json"):
        found = {str(args.spec): validate_dataset(str(args.spec), roots, task=tasks_of(str(args.spec), roots))}
    else:
        _, spec = tiny.read(args.spec, small=args.tiny)
        if isinstance(spec, Suite):
            for name in spec.jobs:
                load(args.spec.parent / name)
            print(f"suite {spec.suite}: its shape is right; running suites needs the service and is not built yet")
            return 0
        found = _of_spec(spec, roots)
    show.reports(found, as_json=args.json)
    return 0 if all(report.ok for report in found.values()) else 2


def _of_spec(spec: JobSpec | StudySpec, roots: list[Path]) -> dict[str, Report]:
    """Reports of every data set that a spec names, by reference; lines are those of its manifests."""
    read = Reader(roots)
    if isinstance(spec, JobSpec):
        jobs = [resolve(spec, read(spec)).spec]
    else:
        jobs = [run.spec for run in expand(spec, read).jobs().values()]
    found: dict[str, Report] = {}
    for job in jobs:
        corpus = read(job)
        assert corpus.test is not None
        test = {"test": corpus.test.rows}
        for part in (part for source in corpus.sources.values() for part in source.each()):
            if part.ref not in found:
                found[part.ref] = validate_dataset(part.ref, roots, task=corpus.tasks, other_splits=test)
        for part in corpus.test.each():
            if part.ref not in found:
                found[part.ref] = validate_dataset(part.ref, roots, task=corpus.tasks)
    return found


def _explain(args: argparse.Namespace) -> int:
    for n, path in enumerate(args.specs):
        if n and not args.json:
            print()
        args.spec = path
        (_, spec), roots = tiny.read(path, small=args.tiny), roots_of(args)
        if isinstance(spec, Suite):
            show.suite(spec, as_json=args.json)
        elif isinstance(spec, StudySpec):
            show.study(expand(spec, Reader(roots)), as_json=args.json)
        else:
            resolved, _ = read_and_resolve(spec, roots)
            show.job(resolved, as_json=args.json)
    return 0


def _plan(args: argparse.Namespace) -> int:
    from trainer.estimate import estimate

    (_, spec), roots = tiny.read(args.spec, small=args.tiny), roots_of(args)
    if isinstance(spec, Suite):
        raise problem(str(args.spec), "plan takes a job or a study; give one of the suite's jobs")
    if isinstance(spec, JobSpec):
        resolved, corpus = read_and_resolve(spec, roots)
        show.plan(resolved, estimate(resolved, corpus), as_json=args.json)
        return 0
    read = Reader(roots)
    expanded = expand(spec, read)
    found = {}
    for cell in [*expanded.cells, *expanded.baselines]:
        run = cell.runs[0]
        found[cell.name] = (run, estimate(run, read(run.spec)), len(cell.runs))
    show.study_plan(found, expanded, as_json=args.json)
    return 0


def _run(args: argparse.Namespace) -> int:
    data, spec = tiny.read(args.spec, small=args.tiny)  # bad specs are refused here, before torch is loaded
    if isinstance(spec, Suite):
        raise problem("suite", "running suites needs the service and is not built yet; run one of its jobs")
    path = tiny.written(data, args.out) if args.tiny else args.spec
    command = ["-m", "trainer", str(path), "--out", args.out, "--ranks", str(args.ranks)]
    return _become(command, args)


def _check(args: argparse.Namespace) -> int:
    command = ["-m", "trainer.hearing", args.data, "--base", args.base, "--limit", str(args.limit)]
    return _become([*command, *(["--json"] if args.json else [])], args)


def _become(command: list[str], args: argparse.Namespace) -> NoReturn:
    """Go on as the trainer: one process, so that Ctrl-C and exit codes are its own."""
    for root in roots_of(args):
        command += ["--data-root", str(root)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command])


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _schema(args: argparse.Namespace) -> int:
    sys.stdout.write(markdown() if args.markdown else json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
