"""SLURP: English commands, one row per recording.

Layout (github.com/pswietojanski/slurp, README, and its `scripts/evaluation/util.py`): `train.jsonl`, `devel.jsonl`,
`test.jsonl`, `train_synthetic.jsonl`, `metadata.json` in `dataset/slurp/`, recordings in `audio/slurp_real/` and
`audio/slurp_synth/`. The intent is `scenario_action`: the column `intent` differs from it in some sentences, and the
official scorer does not read it. A slot's value is its tokens' surfaces in lower case, as the scorer has them.
"""

import json
from pathlib import Path
from typing import Any

from attune.importing.corpus import Corpus, files, need
from attune.importing.options import ImportOptions
from attune.importing.source import SourceError, read_text

SPLITS = {"train": "train", "devel": "dev", "test": "test", "train_synthetic": "train_synthetic"}
LAYOUT = "train.jsonl, devel.jsonl, test.jsonl (dataset/slurp) and the recordings (audio/slurp_real)"


def read(corpus: Corpus, _options: ImportOptions) -> None:
    """Rows of all files that are there. Without any recording below the folder: one text row per sentence."""
    found = need(corpus.files(*(f"{name}.jsonl" for name in SPLITS)), corpus.root, "slurp", LAYOUT)
    speakers = _speakers(corpus)
    spoken = corpus.finder.any()
    if not spoken:
        corpus.notes.append(f"no recordings below {corpus.finder.root.name}: the sentences alone, once each, as text")
    for path in found:
        for line, row in corpus.json_lines(path):
            with corpus.row(path, line):
                said = {"text": row["sentence"], "label": _label(row), "language": "en", "split": SPLITS[path.stem]}
                about = {"slurp_id": row["slurp_id"]}
                if not spoken:
                    corpus.add(path, line, id=f"slurp-{row['slurp_id']}", meta=about, **said)
                    continue
                for take in row["recordings"]:
                    with corpus.row(path, line):
                        name = take["file"]
                        meta = about | {"headset": Path(name).stem.endswith("-headset"), "wer": take.get("wer")}
                        speaker = speakers.get((str(row["slurp_id"]), name))
                        corpus.add(path, line, audio=name, id=Path(name).stem, speaker=speaker, meta=dict(meta), **said)


def _label(row: dict[str, Any]) -> dict[str, Any]:
    words = [token["surface"].lower() for token in row["tokens"]]
    slots = [{"type": e["type"], "value": " ".join(words[n] for n in e["span"])} for e in row["entities"]]
    return {"intent": f"{row['scenario']}_{row['action']}", "slots": slots}


def _speakers(corpus: Corpus) -> dict[tuple[str, str], str]:
    """User by (sentence, recording), from metadata.json where it is there."""
    path = next(iter(files(corpus.root, "metadata.json")), None)
    if path is None:
        corpus.notes.append("no metadata.json: speakers are unknown; take it from dataset/slurp of the repository")
        return {}
    try:
        entries = json.loads(read_text(path))
        return {
            (key, name): take["usrid"]
            for key, entry in entries.items()
            for name, take in entry["recordings"].items()
            if take.get("usrid")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path}: not the metadata of SLURP ({what}); copy it again") from None
