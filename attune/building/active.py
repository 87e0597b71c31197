"""Active selection (SALAD's Stage II, arXiv 2510.13632): the texts that a job hears worst, spoken up to a budget.

The measurement is the trainer's (`python -m trainer active`, which loads the model); here its order is followed.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from attune.building import check_new, finish, found_in
from attune.building.clips import kept
from attune.building.spoken import Progress, Speech, speak
from attune.importing import ImportReport, SourceError
from trainer import audio
from trainer.corpus import read_corpus
from trainer.manifest import Utterance, fingerprint, load
from trainer.resolve import Resolved
from trainer.spec import listed
from trainer.store import Store, StoreError, open_store

Measure = Callable[[list[str]], int]
"""Runs the trainer's measurement with these arguments; its exit code."""
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Active:
    """What is to be selected, from what, by what."""

    job: str
    """Folder or s3:// place of the finished Stage I job."""
    texts: str
    """Data set to select from; its train rows."""
    probe: str
    """Data set that is spoken already (`attune build speech`), some 40 texts for each cluster."""
    budget: str = "1%"
    """`1%` of the seconds of the job's recordings (the paper), `2h`, `90m`, `600s`, or a number of texts."""
    strategy: str = "active"
    """`active`, or `uniform`: every text alike, the paper's control."""
    clusters: int = 128
    gamma: float = 5.0
    seed: int = 0
    embedding: str = "tfidf"
    pooling: str = "cls"


def build_active(
    ask: Active,
    out: str | Path,
    speech: Speech,
    *,
    licence: str | None = None,
    roots: Sequence[Path | str] = (".",),
    progress: Progress | None = None,
    measure: Measure | None = None,
) -> ImportReport:
    """A data set of the selected texts, spoken; `clusters.json` beside its manifest says what was measured and chosen.
    SourceError as of `build_speech`."""
    out = Path(out)
    _check(ask)
    speech.check()
    check_new(out)
    with kept(out) as folder:
        found = found_in(ask.texts, roots)
        store, resolved = _job(ask.job)
        count, seconds = _budget(ask.budget, resolved, roots)
        told, order = _measured(ask, folder, store, resolved, roots, measure or _by_trainer)
        cluster = dict(order)
        if count is not None and count > len(order):
            raise SourceError(f"--budget {ask.budget}: there are {len(order)} texts to select from; ask for fewer")
        by_id = {record.id: record for record in found.records}
        found.records = [by_id[name] for name, _ in order[:count]]
        speak(found, folder, speech, None, progress, seconds=seconds)
        found.rows_read = len(order)
        chosen = Counter(cluster[str(record.id)] for record in found.records)
        for row in told["clusters"]:
            row["chosen"] = chosen[row["cluster"]]
        for record in found.records:
            record.meta["cluster"] = cluster[str(record.id)]
        told |= {"strategy": ask.strategy, "budget": ask.budget}
        (folder / "clusters.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        found.notes += [*told["notes"], f"selected: {len(found.records)} of {len(order)} texts, {ask.strategy}"]
        found.provenance |= {
            "texts": ask.texts, "licence of the texts": licence or "not stated",
            "selected by": f"{ask.strategy}, gamma {_gamma(ask):g}, for the job {told['job']}",
        }  # fmt: skip
        return finish(found, Path(ask.texts), out, beside={"clusters.json": folder / "clusters.json"})


def _gamma(ask: Active) -> float:
    return 0.0 if ask.strategy == "uniform" else ask.gamma


def _check(ask: Active) -> None:
    if ask.strategy not in ("active", "uniform"):
        raise SourceError(f"--strategy {ask.strategy}: must be active or uniform")
    if ask.clusters < 1:
        raise SourceError(f"--clusters {ask.clusters}: must be 1 or more")
    if not 0 <= ask.gamma < 1000:
        raise SourceError(f"--gamma {ask.gamma:g}: must be 0 or more")


def _job(job: str) -> tuple[Store, Resolved]:
    try:
        store = open_store(job)
        if store.exists("final.json"):
            return store, Resolved.model_validate_json(store.get("spec.json"))
    except ValidationError:
        raise SourceError(f"--job {job}: its spec.json is no job's; give the folder of one") from None
    except (StoreError, OSError, BotoCoreError, ClientError) as error:
        raise SourceError(f"--job {job}: cannot be read ({error})") from None
    raise SourceError(f"--job {job}: no finished job lies there; give the folder of one (--out of attune run)")


def _budget(said: str, resolved: Resolved, roots: Sequence[Path | str]) -> tuple[int | None, float | None]:
    """(texts, seconds of speech), one of them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|s|m|h|)", said.strip())
    value = float(match[1]) if match else 0.0
    if match is None or not value > 0 or (match[2] == "" and value != int(value)):
        raise SourceError(f"--budget {said!r}: must be a share of the job's recordings (1%), a time (2h) or a count")
    if match[2] == "":
        return int(value), None
    if match[2] != "%":
        return None, value * SECONDS[match[2]]
    speech = read_corpus(resolved.spec, roots).sources.get("speech")
    if speech is None:
        raise SourceError(f"--budget {said}: the job has no recordings to take a share of; say a time or a count")
    return None, value / 100 * sum(_seconds(u) for u in speech.rows)


def _seconds(row: Utterance) -> float:
    return row.duration_s or audio.info(str(row.audio)).duration_s - row.offset_s


def _measured(
    ask: Active, folder: Path, store: Store, resolved: Resolved, roots: Sequence[Path | str], measure: Measure
) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """(clusters, texts in order), measured unless a build that was ended has done it: of the very same things."""
    digest = hashlib.sha256(store.get("final.json"))
    for data in (ask.texts, ask.probe):
        digest.update(fingerprint(load(data, roots)).encode())
    asked = json.dumps({**asdict(ask), "budget": None, "of": digest.hexdigest()}, sort_keys=True)
    done = folder / "asked.json"
    if not (done.is_file() and done.read_text() == asked):
        arguments = ["--job", ask.job, "--texts", ask.texts, "--probe", ask.probe, "--out", str(folder)]
        arguments += ["--clusters", str(ask.clusters), "--gamma", str(_gamma(ask)), "--seed", str(ask.seed)]
        arguments += ["--embedding", ask.embedding, "--pooling", ask.pooling]
        for test in listed(resolved.spec.evaluate.on):
            arguments += ["--not-in", test]
        for root in roots:
            arguments += ["--data-root", str(root)]
        if measure(arguments):
            raise SourceError("the measurement ended with the error above; nothing was spoken")
        done.write_text(asked)
    told = json.loads((folder / "clusters.json").read_text(encoding="utf-8"))
    return told, [(name, c) for name, c in json.loads((folder / "order.json").read_text(encoding="utf-8"))]


def _by_trainer(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "trainer", "active", *arguments]).returncode
