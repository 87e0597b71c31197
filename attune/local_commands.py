"""`attune up`, `down`, `doctor`, `reingest`: the service on this machine. Exit codes as everywhere: 0, 1, 2, 130."""

import argparse
import sys
from collections.abc import Callable

from attune import show_jobs
from attune.home import LocalError, home
from attune.service_commands import Command, Run, as_json, failed


def add(command: Command) -> None:
    """Register the commands; `command` makes one."""
    sub = command("up", _up, "start the service on this machine, or complete what is missing of it")
    sub.add_argument("--port", type=int, help="port of API and dashboard (default 8321)")
    sub.add_argument(
        "--data-root", action="append", default=[], help="folder that data references are relative to (default: here)"
    )
    sub.add_argument("--no-ray", dest="ray", action="store_false", default=None,
                     help="start no Ray; jobs wait, or go to the cluster of ATTUNE_RAY_ADDRESS")  # fmt: skip
    _folder(sub)
    sub = command("down", _down, "end the service on this machine; jobs go on with the next `attune up`")
    sub.add_argument("--now", action="store_true", help="give running jobs no time to write a checkpoint")
    _folder(sub)
    sub = command("doctor", _doctor, "check everything that the service needs, and say what to do")
    sub.add_argument("--base", help="also check that this base can be read")
    _folder(sub)
    sub = command("reingest", _reingest, "take in what of the store the database lacks, for one that was lost")
    _folder(sub)


def _folder(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", metavar="DIR", help="folder of the service (default: ATTUNE_HOME, else ~/.attune)")
    as_json(sub)


def _needs(extras: str) -> Callable[[Run], Run]:
    """The command, or what to install where a package that it needs is missing."""

    def guarded(run: Run) -> Run:
        def checked(args: argparse.Namespace) -> int:
            try:
                return run(args)
            except ModuleNotFoundError as error:
                return failed(args, f"{error.name} is not installed: pip install 'attune[{extras}]'")

        return checked

    return guarded


@_needs("service,embedded,ray,trainer")
def _up(args: argparse.Namespace) -> int:
    from attune.instance import Instance
    from attune.local import up
    from attune.processes import ProcessError

    instance = Instance(home(args.data))
    try:
        made = up(instance, port=args.port, data_roots=args.data_root, ray=args.ray, say=_say)
    except (LocalError, ProcessError) as error:
        return failed(args, str(error))
    if args.json:
        show_jobs.dump({"url": made.url, "key": made.key, "folder": str(instance.folder), "started": made.started})
        return 0
    again = "is running" if made.started else "was running already"
    print(f"Attune {again}: {made.url}")
    if made.key:
        print(f"admin key, shown this once: {made.key}\n  (the command line has it from {instance.client_file})")
    if instance.folder != home():
        print(f"for other commands: export ATTUNE_HOME={instance.folder}")
    return 0


@_needs("service")
def _down(args: argparse.Namespace) -> int:
    folder = home(args.data)
    if not folder.exists():
        ended, waiting = {}, 0
    else:
        from attune.instance import Instance
        from attune.local import down, unfinished

        instance = Instance(folder)
        ended = down(instance, now=args.now, say=_say)
        waiting = unfinished(instance) if ended else 0
    if args.json:
        show_jobs.dump({"ended": ended, "unfinished_jobs": waiting, "folder": str(folder)})
    elif not ended:
        print(f"nothing was running in {folder}")
    else:
        print("ended " + ", ".join(f"{n} ({count} processes)" if count > 1 else n for n, count in ended.items()))
    if waiting and not args.json:
        print(f"{waiting} unfinished job(s) go on after the next `attune up`")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from attune.doctor import examine

    findings = []
    for finding in examine(home(args.data), args.base):
        findings.append(finding)
        if not args.json:
            word = "ok  " if finding.ok else "FAIL" if finding.needed else "note"
            print(f"{word} {finding.what}: {finding.message}", flush=True)
    if args.json:
        show_jobs.dump([finding._asdict() for finding in findings])
    return 1 if any(finding.needed and not finding.ok for finding in findings) else 0


@_needs("service")
def _reingest(args: argparse.Namespace) -> int:
    """Exit code 1 also where some of the store could not be taken in."""
    from attune.instance import Instance
    from attune.local import reingest

    instance = Instance(home(args.data))
    try:
        report = reingest(instance)
    except LocalError as error:
        return failed(args, str(error), code=2)
    if args.json:
        show_jobs.dump(report.to_json())
    else:
        print("\n".join(report.lines()))
        waiting = sum(n for status, n in report.jobs.items() if status in ("queued", "validating"))
        if waiting and not instance.running:
            print(f"{waiting} unfinished job(s) go on after the next `attune up`")
    return 1 if report.problems else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
