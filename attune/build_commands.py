"""`attune build`: data sets made of labelled texts by a speech synthesiser. Exit codes as everywhere: 0, 2, 130."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from attune import show
from attune.building import Engine, PairOptions, Speech, build_speech, build_summaries
from attune.building.active import Active, build_active
from attune.building.spoken import Progress
from attune.service_commands import Command

TTS = 'command that speaks one text, e.g. "espeak-ng -v {language} -w {wav} -f {text_file}"; also {voice}'


OF_TTS = ("tts_licence", "voices", "voices_test", "skip_failed")
"""Options that say nothing without a synthesiser."""


def add(
    command: Command,
    roots: Callable[[argparse.ArgumentParser], None],
    roots_of: Callable[[argparse.Namespace], list[Path]],
) -> None:
    """Register the command; `command` makes one."""
    build = command("build", None, "make a data set of labelled texts by a speech synthesiser")
    kinds = build.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, run, help_: str) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run)
        sub.add_argument("--out", type=Path, required=True, help="new folder; an ended build goes on where it was")
        sub.add_argument("--licence", help="licence of the texts, for the data set's card")
        sub.add_argument("--json", action="store_true", help="print the report as JSON")
        return sub

    sub = kind("speech", lambda args: _speech(args, roots_of(args)), "the rows of a data set, spoken")
    sub.add_argument("data", help="data set with texts, e.g. folder or folder:train")
    _tts(sub, required=True)
    roots(sub)
    _active_command(
        kind("active", lambda args: _active(args, roots_of(args)), "the texts that a job hears worst, spoken")
    )
    roots(kinds.choices["active"])
    _summaries_command(kind("summaries", _summaries, "documents with summaries, spoken: a summarisation data set"))


def _tts(sub: argparse.ArgumentParser, *, required: bool) -> None:
    sub.add_argument("--tts", required=required, metavar="COMMAND", help=TTS + "; without {text_file}: text on stdin")
    sub.add_argument("--tts-timeout", type=float, default=120.0, metavar="S", help="seconds for one text (default 120)")
    sub.add_argument("--tts-licence", help="licence of engine and voices, for the data set's card")
    sub.add_argument("--voices", type=_names, default=(), help="voices by comma, divided among splits by hash")
    sub.add_argument("--voices-test", type=_names, default=(), help="voices of dev and test; --voices are train's then")
    sub.add_argument("--workers", type=int, default=os.cpu_count(), help="texts spoken at once (default: cores)")
    sub.add_argument("--skip-failed", action="store_true", help="leave out rows that the command fails on")
    sub.add_argument("--seed", type=int, default=0, help="seed of splits and voices (default 0)")


def _summaries_command(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "source", type=Path, help="CSV, TSV, XLSX, JSON, JSONL, Parquet of the hub; a folder or an archive"
    )
    sub.add_argument("--language", help="BCP-47 tag, e.g. ar; needed unless a column gives it")
    for role in ("text", "summary", "split", "id", "speaker"):
        sub.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role} (default: by its name)")
    sub.add_argument("--audio", help="speech that exists: a column of files, or a folder of files named by the ids")
    sub.add_argument("--audio-root", type=Path, help="folder that paths of that column are relative to")
    sub.add_argument("--instruction", help="what the model is asked, in English")
    sub.add_argument("--encoding", help="encoding of a text file (default UTF-8)")
    sub.add_argument("--sheet", help="sheet of a workbook (default the first)")
    _tts(sub, required=False)


def _active_command(sub: argparse.ArgumentParser) -> None:
    sub.description = (
        "Active selection (arXiv 2510.13632, Stage II): texts whose speech a job misunderstands most, spoken."
    )
    sub.add_argument("--job", required=True, help="folder of a finished LoRA job (salad, phase distillation)")
    sub.add_argument("--texts", required=True, help="data set to select from: broad texts; its train rows")
    sub.add_argument("--probe", required=True, help="data set of spoken texts to measure on, some 40 for each cluster")
    sub.add_argument("--budget", default="1%", help="share of the job's recordings (1%%), time (2h) or count")
    sub.add_argument("--strategy", choices=("active", "uniform"), default="active", help="uniform: the control")
    sub.add_argument("--clusters", type=int, default=128, help="clusters of the texts (default 128)")
    sub.add_argument("--gamma", type=float, default=5.0, help="P_target ~ P_web * M^gamma (default 5)")
    sub.add_argument("--embedding", default="tfidf", help="tfidf, or a sentence encoder's hub id or folder (./name)")
    sub.add_argument("--pooling", choices=("cls", "mean"), default="cls", help="of a sentence encoder")
    _tts(sub, required=True)


def speech_of(args: argparse.Namespace) -> Speech:
    """The synthesiser that the options describe."""
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: must be 1 or more")
    if not args.tts_timeout > 0:
        raise ValueError(f"--tts-timeout {args.tts_timeout:g}: must be seconds above 0")
    engine = Engine.of(args.tts, args.tts_timeout)
    speech = Speech(engine, args.voices, args.voices_test, args.workers, args.seed, args.skip_failed, args.tts_licence)
    speech.check()
    return speech


@contextmanager
def bar() -> Iterator[Progress]:
    """Progress for a terminal."""
    with tqdm(desc="spoken", disable=not sys.stderr.isatty(), leave=False) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield progress


def _speech(args: argparse.Namespace, roots: list[Path]) -> int:
    with bar() as progress:
        report = build_speech(
            args.data, args.out, speech_of(args), licence=args.licence, roots=roots, progress=progress
        )
    show.imported(report, args.out, as_json=args.json)
    return 0


def _active(args: argparse.Namespace, roots: list[Path]) -> int:
    ask = Active(
        args.job, args.texts, args.probe, args.budget, args.strategy, args.clusters, args.gamma, args.seed,
        args.embedding, args.pooling,
    )  # fmt: skip
    with bar() as progress:
        report = build_active(ask, args.out, speech_of(args), licence=args.licence, roots=roots, progress=progress)
    show.imported(report, args.out, as_json=args.json)
    return 0


def _summaries(args: argparse.Namespace) -> int:
    if not args.tts and (said := [name for name in OF_TTS if getattr(args, name)]):
        options = " and ".join(f"--{name.replace('_', '-')}" for name in said)
        raise ValueError(f"{options}: says how --tts speaks; give --tts, or leave it out")
    named = {role: getattr(args, role) for role in ("text", "summary", "split", "id", "speaker")}
    ask = PairOptions(
        args.language, {role: name for role, name in named.items() if name}, args.audio, args.audio_root,
        args.instruction, args.encoding, args.sheet,
    )  # fmt: skip
    with bar() as progress:
        report = build_summaries(
            args.source, args.out, ask, speech_of(args) if args.tts else None, licence=args.licence, seed=args.seed,
            progress=progress,
        )  # fmt: skip
    show.imported(report, args.out, as_json=args.json)
    return 0


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different names, separated by commas")
    return names
