"""`attune import`, `attune words` and `attune export`: data sets in and out. Exit codes as everywhere: 0, 2, 130."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from attune import show
from attune.exporting import FORMATS, export_dataset
from attune.importing import KINDS, ImportOptions, SourceError, import_dataset
from attune.importing.words import add_words, read_ctm, read_textgrids
from attune.service_commands import Command

ROLES = ("audio", "text", "label", "choices", "intent", "slots", "speaker", "split", "id", "offset_s", "duration_s")


def add(
    command: Command,
    roots: Callable[[argparse.ArgumentParser], None],
    roots_of: Callable[[argparse.Namespace], list[Path]],
) -> None:
    """Register the commands; `command` makes one."""
    _import_command(command("import", _import, "turn a table, clips or a published corpus into a data set"))
    sub = command("words", lambda args: _words(args, roots_of(args)), "add times of words to a data set, as a new one")
    sub.add_argument("data", help="data set, e.g. folder")
    times = sub.add_mutually_exclusive_group(required=True)
    times.add_argument("--ctm", type=Path, help="file: recording channel start duration word, a word a line")
    times.add_argument("--textgrid", type=Path, metavar="DIR", help="folder of Praat TextGrids, named like recordings")
    sub.add_argument("--out", type=Path, required=True, help="folder of the new data set")
    sub.add_argument("--link", action="store_true", help="refer to the recordings where they are instead of copying")
    sub.add_argument("--json", action="store_true", help="print the report as JSON")
    roots(sub)
    sub = command("export", lambda args: _export(args, roots_of(args)), "write a data set in another toolkit's form")
    sub.add_argument("format", choices=tuple(FORMATS), help="NeMo manifests, Lhotse cuts, or Hugging Face's Parquet")
    sub.add_argument("data", help="data set, e.g. folder or folder:train")
    sub.add_argument("--out", type=Path, required=True, help="new folder")
    sub.add_argument("--link", action="store_true", help="name the recordings where they are instead of copying")
    sub.add_argument("--json", action="store_true", help="print the report as JSON")
    roots(sub)


def _import_command(sub: argparse.ArgumentParser) -> None:
    sub.usage = "attune import [KIND] SOURCE --out DIR [options]"
    sub.epilog = f"KIND is one of: {', '.join(KINDS)}. Without it a source is taken for what it looks like."
    sub.add_argument("source", nargs="+", help="[KIND and] a file, a folder, or an archive (zip, tar, tar.gz) of one")
    sub.add_argument("--out", type=Path, required=True, help="folder of the new data set; must not hold another one")
    sub.add_argument("--language", help="BCP-47 tag, e.g. it or fr-FR: where the source does not say, or which of many")
    sub.add_argument("--target", help="language to translate into (must-c)")
    sub.add_argument("--config", help="which published configuration (italic: hard_speaker …; common-voice: validated)")
    sub.add_argument("--task", help="name of the task (default: the corpus's, else by its answer form)")
    sub.add_argument("--instruction", help="what the model is asked, in English")
    forms = ("json", "label", "label_set", "choice", "text")
    sub.add_argument("--answer", choices=forms, help="form of the answer")
    for role in ROLES:
        what = "column or key" if role != "slots" else "column or key (several: by comma, a slot type each)"
        flag = f"--{role.replace('_', '-')}"
        sub.add_argument(flag, metavar="COLUMN", help=f"{what} of the {role}, instead of the guess; '-': none")
    sub.add_argument("--audio-root", type=Path, help="folder that audio paths are relative to (default: the source's)")
    sub.add_argument("--speaker-pattern", help="regular expression whose first group in a file name is the speaker")
    sub.add_argument("--encoding", help="encoding of a text file (default UTF-8)")
    sub.add_argument("--sheet", help="sheet of a workbook (default the first)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the split by speaker (default 0)")
    sub.add_argument("--link", action="store_true", help="refer to the recordings where they are instead of copying")
    sub.add_argument("--json", action="store_true", help="print the report as JSON")


def _import(args: argparse.Namespace) -> int:
    *said, source = args.source
    if len(said) > 1:
        raise SourceError(f"one kind and one source are read at a time, not {' '.join(args.source)}")
    if not said and source in KINDS and not Path(source).exists():
        raise SourceError(f"{source} is a kind of source; name the folder too: attune import {source} FOLDER --out DIR")
    columns = {role: None if given == "-" else given for role in ROLES if (given := getattr(args, role))}
    names = ("language", "target", "config", "task", "instruction", "answer", "audio_root")
    names += ("speaker_pattern", "encoding", "sheet", "seed", "link")
    options = ImportOptions(columns=columns, **{name: getattr(args, name) for name in names})
    with tqdm(desc="recordings", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = import_dataset(source, args.out, options, progress, kind=said[0] if said else None)
    show.imported(report, args.out, as_json=args.json)
    return 0


def _words(args: argparse.Namespace, roots: list[Path]) -> int:
    found = read_ctm(args.ctm) if args.ctm else read_textgrids(args.textgrid)
    report = add_words(args.data, found, args.out, roots=roots, link=args.link)
    show.imported(report, args.out, as_json=args.json)
    return 0


def _export(args: argparse.Namespace, roots: list[Path]) -> int:
    report = export_dataset(args.format, args.data, args.out, roots=roots, link=args.link)
    if args.json:
        left = [{"line": row.line, "reason": row.reason} for row in report.left_out]
        print(json.dumps({"rows": report.rows, "by_split": report.by_split, "left_out": left}, indent=1))
        return 0
    print(f"{args.out}: {report.rows} rows as {args.format}, {len(report.left_out)} left out")
    for row in report.left_out[:20]:
        print(f"  left out: {row}")
    if len(report.left_out) > 20:
        print(f"  … and {len(report.left_out) - 20} more (--json lists all)")
    return 0
