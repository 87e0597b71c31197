"""`attune import` of generic layouts and archives; `attune export`, and the way back."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile
from sources import EN, bring_kind, clip, cut, json_lines, shard, slot, sound

from attune.cli import main
from attune.exporting import export_dataset
from attune.importing import KINDS, SourceError, import_dataset
from attune.importing.corpora import CORPORA
from attune.importing.write import task_yaml
from trainer.manifest import PUBLISHED, Utterance, fingerprint, load, write_manifest
from trainer.spec import Task


@pytest.fixture
def bring(tmp_path):
    """Import `in` as a kind: (report, rows by id, task)."""
    return partial(bring_kind, tmp_path)


class TestHuggingFace:
    def test_a_hub_folder_with_class_names(self, tmp_path, bring):
        rows = [{"audio": sound(tmp_path, n, f"c{n}.wav"), "label": n % 2, "speaker_id": n} for n in range(4)]
        names = {"label": ["off", "on"]}
        shard(tmp_path / "in" / "data" / "train-00000-of-00002.parquet", rows[:2], names)
        shard(tmp_path / "in" / "data" / "train-00001-of-00002.parquet", rows[2:3], names)
        shard(tmp_path / "in" / "data" / "test-00000-of-00001.parquet", rows[3:], names)
        report, rows, task = bring("hf", language="en")
        assert task.labels == ["off", "on"]
        assert sorted((row.label, row.speaker, row.split) for row in rows.values()) == [
            ("off", "0", "train"), ("off", "2", "train"), ("on", "1", "train"), ("on", "3", "test")
        ]  # fmt: skip
        assert report.columns == {"audio": "audio", "label": "label", "speaker": "speaker_id", "split": "split"}
        assert sorted(p.name.split("-")[0] for p in (tmp_path / "out" / "audio").iterdir()) == ["c0", "c1", "c2", "c3"]
        again = import_dataset(tmp_path / "in", tmp_path / "out", EN)  # by its looks
        assert (again.id, again.written) == (report.id, False)

    def test_recordings_as_paths_and_rows_without(self, tmp_path, bring):
        clip(tmp_path / "in" / "clips" / "a.wav", 1)
        rows = [{"audio": {"bytes": None, "path": p}, "text": "hi"} for p in ("clips/a.wav", "gone.wav")]
        shard(tmp_path / "in" / "train.parquet", rows)
        report, rows, _ = bring("hf", language="en")
        assert len(rows) == 1
        assert str(report.bad[0]).startswith("train.parquet:2: audio 'gone.wav' is missing")

    def test_what_save_to_disk_leaves(self, tmp_path, bring):
        for split in ("train", "validation"):
            folder = tmp_path / "in" / split
            folder.mkdir(parents=True)
            table = pa.Table.from_pylist([{"audio": sound(tmp_path, len(split)), "sentence": f"a {split} row"}])
            stream = pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema)
            stream.write_table(table)
            stream.close()
        (tmp_path / "in" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
        _, rows, task = bring("hf", language="en")
        assert {row.split: row.text for row in rows.values()} == {"train": "a train row", "dev": "a validation row"}
        assert task.answer == "text"

    def test_our_own_index_is_no_data_set_of_the_hub(self, tmp_path):
        clip(tmp_path / "in" / "yes" / "a.wav")
        import_dataset(tmp_path / "in", tmp_path / "in" / "_imported", EN)
        assert import_dataset(tmp_path / "in", tmp_path / "out", EN).format == "folder"

    def test_columns_that_a_manifest_cannot_hold(self, tmp_path, bring):
        row = {"audio": sound(tmp_path, 1), "translated": sound(tmp_path, 2), "text": "hi", "thumb": b"\xff",
               "at": datetime(2026, 1, 2)}  # fmt: skip
        shard(tmp_path / "in" / "train.parquet", [row])
        report, rows, _ = bring("hf", language="en")
        assert next(iter(rows.values())).meta == {"at": "2026-01-02T00:00:00"}
        assert any("columns audio, translated: one is used" in note for note in report.notes)

    def test_a_damaged_file(self, tmp_path, bring):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "train.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(SourceError, match=r"train\.parquet: not a whole Parquet or Arrow file"):
            bring("hf", language="en")


class TestNemo:
    def test_segments_labels_and_paths(self, tmp_path, bring):
        clip(tmp_path / "in" / "wav" / "talk.wav", 1, seconds=2)
        clip(tmp_path / "in" / "wav" / "alone.wav", 2, seconds=1)
        lines = [
            {"audio_filepath": "wav/talk.wav", "offset": 0.5, "duration": 0.5, "text": "1", "lang": "de", "speaker": 7},
            {"audio_filepath": "/elsewhere/wav/talk.wav", "offset": 1.0, "duration": 1.0, "text": "two", "lang": "de"},
            {"audio_filepath": "wav/gone.wav", "duration": 1.0, "text": "three", "lang": "de"},
            {"audio_filepath": "wav/alone.wav", "text": "no duration", "lang": "de"},
        ]
        json_lines(tmp_path / "in" / "train_manifest.json", lines)
        (tmp_path / "in" / "model_config.json").write_text('{\n "sample_rate": 16000\n}\n')  # no manifest
        report, rows, task = bring("nemo")
        assert [(r.offset_s, r.duration_s, r.text, r.speaker) for r in rows.values()] == [
            (0.5, 0.5, "1", "7"), (1.0, 1.0, "two", None)
        ]  # fmt: skip
        assert {row.split for row in rows.values()} == {"train"}
        assert task.answer == "text"
        assert "not read: model_config.json; no audio_filepath in there" in report.notes
        assert [str(bad).split(";")[0] for bad in report.bad] == [
            "train_manifest.json:3: audio 'wav/gone.wav' is missing",
            "train_manifest.json:4: field 'duration' is missing",
        ]

    def test_classification(self, tmp_path, bring):
        for n in range(2):
            clip(tmp_path / "in" / f"{n}.wav", n)
        lines = [{"audio_filepath": f"{n}.wav", "duration": 0.3, "command": "on", "offset": 0} for n in range(2)]
        json_lines(tmp_path / "in" / "test_manifest.json", lines)
        _, rows, task = bring("nemo", language="en")
        assert (task.answer, task.labels, {row.label for row in rows.values()}) == ("label", ["on"], {"on"})
        with pytest.raises(SourceError, match="language is unknown"):
            bring("nemo", out="o2")


class TestLhotse:
    def supervision(self, start=0.0, duration=0.5, text="hi", **more):
        times = {"start": start, "duration": duration, "channel": 0}
        said = {"text": text, "language": "English", "speaker": "p1"}
        return {"id": f"s{start}", "recording_id": "r", **times, **said, **more}

    def test_cuts_are_segments_and_each_supervision_a_row(self, tmp_path, bring):
        clip(tmp_path / "in" / "talk.wav", 1, seconds=2)
        one = cut("c1", "talk.wav", 0.25, 0.5, [self.supervision()])
        two = cut("c2", "talk.wav", 1.0, 1.0, [self.supervision(0.0), self.supervision(0.5, 0.25, custom={"snr": 3})])
        json_lines(tmp_path / "in" / "cuts_dev.jsonl", [one, two])
        json_lines(tmp_path / "in" / "recordings_dev.jsonl", [one["recording"]])  # beside the cuts in many folders
        _, rows, _ = bring("lhotse")
        assert {id: (r.offset_s, r.duration_s) for id, r in rows.items()} == {
            "c1": (0.25, 0.5), "s0.0": (1.0, 0.5), "s0.5": (1.5, 0.25)
        }  # fmt: skip
        row = rows["s0.5"]
        assert (row.language, row.speaker, row.split, row.meta) == ("en", "p1", "dev", {"snr": 3})

    def test_new_ids_tell_the_rows_of_a_line_apart(self, tmp_path, bring):
        clip(tmp_path / "in" / "talk.wav", 1, seconds=2)
        parts = [self.supervision(0.0), self.supervision(0.5)]
        for name, start in (("cuts_train", 0.0), ("cuts_dev", 1.0)):
            json_lines(tmp_path / "in" / f"{name}.jsonl", [cut("c", "talk.wav", start, 1.0, parts)])
        report, rows, _ = bring("lhotse")
        assert sorted(rows) == ["cuts_dev-000001", "cuts_dev-000001-2", "cuts_train-000001", "cuts_train-000001-2"]
        assert any("ids of the source are not unique" in note for note in report.notes)

    def test_what_is_no_plain_file_is_left_out(self, tmp_path, bring):
        clip(tmp_path / "in" / "a.wav", 1, seconds=2)
        plain = [self.supervision()]
        command = cut("c1", "touch pwned", 0, 0.5, plain)
        command["recording"]["sources"][0]["type"] = "command"
        stereo = cut("c2", "a.wav", 0, 0.5, plain, channel_ids=[0, 1])
        fast = cut("c3", "a.wav", 0, 0.5, plain, transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}])
        mixed = cut("c4", "a.wav", 0, 0.5, plain) | {"type": "MixedCut"}
        silent = cut("c5", "a.wav", 0, 0.5, [])
        resampled = cut("c6", "a.wav", 0.5, 0.5, plain, transforms=[{"name": "Resample", "kwargs": {}}])
        json_lines(tmp_path / "in" / "cuts.jsonl", [command, stereo, fast, mixed, silent, resampled])
        report, rows, _ = bring("lhotse")
        assert list(rows) == ["c6"]
        assert [bad.line for bad in report.bad] == [1, 2, 3, 4, 5]
        assert "no command is run" in report.bad[0].reason
        assert "2 channels" in report.bad[1].reason
        assert not Path("pwned").exists()

    def test_lines_that_cannot_be_read_are_named(self, tmp_path, bring):
        whole = gzip.compress(b'{"supervisions": [], "recording": 1}\n' * 10_000)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "cuts.jsonl.gz").write_bytes(whole[:-20])
        with pytest.raises(SourceError, match=r"cuts\.jsonl\.gz:\d+: cannot be read .*; copy it again"):
            bring("lhotse")
        (tmp_path / "in" / "cuts.jsonl.gz").unlink()
        (tmp_path / "in" / "cuts.jsonl").write_bytes(b'{"supervisions": [], "recording": 1}\n"caf\xe9"\n')
        with pytest.raises(SourceError, match=r"cuts\.jsonl:2: not UTF-8 \(byte 0xe9\)"):
            bring("lhotse")


class TestKaldi:
    def write(self, folder, segments=True):
        clip(folder / "wavs" / "r1.wav", 1, seconds=2)
        (folder / "wav.scp").write_text(
            "r1 wavs/r1.wav\nr2 sph2pipe -f wav /corpora/r2.sph |\nr3 wavs/all.ark:4321\nr1 wavs/r1.wav\n"
        )
        text = "u1 good morning\nu2 bye\nu3 piped\nu4 archived\nu5 lost\n" if segments else "r1 whole\nr2 x\nr3 y\n"
        (folder / "text").write_text(text)
        (folder / "utt2spk").write_text("u1 anna\nu2 bert\nr1 anna\n")
        if segments:
            (folder / "segments").write_text(
                "u1 r1 0.50 1.25\nu2 r1 1.25 -1\nu3 r2 0 1\nu4 r3 0 1\nu6 r1 1.0 0.5\nu7 r9 0 1\n"
            )

    def test_segments_and_pipes(self, tmp_path, bring):
        self.write(tmp_path / "in" / "train")
        report, rows, task = bring("kaldi", language="en")
        assert {id: (r.offset_s, r.duration_s, r.text, r.speaker) for id, r in rows.items()} == {
            "u1": (0.5, 0.75, "good morning", "anna"), "u2": (1.25, 0.75, "bye", "bert")
        }  # fmt: skip
        assert {row.split for row in rows.values()} == {"train"}
        said = {str(bad).split(": ")[0]: bad.reason for bad in report.bad}
        assert "the command 'sph2pipe -f wav /corpora/r2.sph |': nothing is run" in said["train/segments:3"]
        assert "a place in an archive" in said["train/segments:4"]
        assert "the end must come after the start" in said["train/segments:5"]
        assert "recording 'r9' is not in wav.scp" in said["train/segments:6"]
        assert said["train/text:5"] == "utterance 'u5' has no recording"
        assert said["train/wav.scp:4"] == "key 'r1' appears twice"
        assert task.answer == "text"

    def test_whole_recordings(self, tmp_path, bring):
        self.write(tmp_path / "in", segments=False)
        _, rows, _ = bring("kaldi", language="en")
        assert {id: (r.text, r.speaker) for id, r in rows.items()} == {"r1": ("whole", "anna")}


class TestArchives:
    def write(self, tmp_path):
        folder = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "1"
        clip(folder / "84-1-0000.flac", 1)
        (folder / "84-1.trans.txt").write_text("84-1-0000 HELLO\n")
        return folder.parents[2]

    @pytest.mark.parametrize("name", ["c.tar", "c.tar.gz", "c.zip"])
    def test_of_a_layout(self, tmp_path, bring, name):
        root = self.write(tmp_path)
        if name.endswith("zip"):
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                for path in root.rglob("*.*"):
                    archive.write(path, path.relative_to(root.parent))
        else:
            with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
                archive.add(root, root.name)
        _, rows, _ = bring("librispeech", source=name)
        assert rows["84-1-0000"].split == "dev-clean"
        assert Path(rows["84-1-0000"].audio).is_file()
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        with pytest.raises(SourceError, match="--link: the recordings come out of an archive"):
            bring("librispeech", source=name, out="o2", link=True)

    def test_of_a_table_and_its_clips(self, tmp_path):
        clip(tmp_path / "clips" / "a.wav")
        with zipfile.ZipFile(tmp_path / "orders.zip", "w") as archive:
            archive.writestr("metadata.csv", "audio,label\nclips/a.wav,x\n")
            archive.write(tmp_path / "clips" / "a.wav", "clips/a.wav")
        assert import_dataset(tmp_path / "orders.zip", tmp_path / "out", EN).recordings == 1
        with zipfile.ZipFile(tmp_path / "alone.zip", "w") as archive:
            archive.writestr("orders.csv", "text,label\nhi,x\n")
        assert import_dataset(tmp_path / "alone.zip", tmp_path / "o2", EN).rows == 1

    def test_that_lead_out_of_themselves_are_refused(self, tmp_path, bring):
        with tarfile.open(tmp_path / "c.tar", "w") as archive:
            member = tarfile.TarInfo("../escaped.txt")
            archive.addfile(member, io.BytesIO(b""))
        with pytest.raises(SourceError, match=r"c\.tar: the name '\.\./escaped\.txt' leads out of the archive"):
            bring("librispeech", source="c.tar")
        assert not (tmp_path / "escaped.txt").exists()


def everything(folder: Path) -> tuple[list[Utterance], Task]:
    """A data set with all that a row may hold: segments, words, questions, sets of splits, texts without recordings."""
    task = Task(
        name="orders", instruction={"en": "What is ordered?"}, answer="json", intents=["order"], slots={"drink": None}
    )
    clip(folder / "audio" / "talk.wav", 1, seconds=2)
    label = {"intent": "order", "slots": [slot("drink", "café")]}
    row = Utterance("u1", "orders", "fr-FR", "train", "un café", label, "audio/talk.wav", 0.5, 1.0, "anna",
                    words=({"text": "un", "start": 0.1, "end": 0.2},), meta={"headset": False})  # fmt: skip
    rows = [row, replace(row, id="u2", offset_s=1.5, duration_s=0.5, split="tst-HE", words=None, question="Quoi ?")]
    clip(folder / "audio" / "alone.flac", 2)
    rows.append(Utterance("u3", "orders", "fr-FR", "dev", None, label, "audio/alone.flac", 0.0, 0.3))
    (folder / "task.yaml").write_text(task_yaml(task), encoding="utf-8")
    write_manifest(rows, folder / "manifest.jsonl")
    return rows, task


class TestExport:
    @pytest.mark.parametrize("kind", ["nemo", "lhotse", "hf"])
    def test_comes_back_as_it_was(self, tmp_path, bring, kind):
        everything(tmp_path / "first")
        first = import_dataset_again(tmp_path)
        report = export_dataset(kind, "data", tmp_path / "in", roots=[tmp_path])
        assert (report.rows, report.left_out) == (3, [])
        again, rows, task = bring(kind)
        assert fingerprint(rows.values(), tmp_path / "out") == first
        assert again.id == first
        assert rows["u2"].question == "Quoi ?"
        assert rows["u1"].words == ({"text": "un", "start": 0.1, "end": 0.2},)
        assert (task.name, task.slots) == ("orders", {"drink": None})

    @pytest.mark.parametrize("kind", ["nemo", "lhotse", "hf"])
    def test_choices_come_back_too(self, tmp_path, bring, kind):
        task = Task(name="ends", instruction={"en": "How does it end?"}, answer="choice", menu=True)
        clip(tmp_path / "first" / "audio" / "a.wav", 1)
        row = Utterance("u1", "ends", "en", "train", "a story", "it rained", "audio/a.wav", 0.0, 0.3)
        (tmp_path / "first" / "task.yaml").write_text(task_yaml(task), encoding="utf-8")
        write_manifest([replace(row, choices=("it rained", "it – snowed"))], tmp_path / "first" / "manifest.jsonl")
        export_dataset(kind, str(tmp_path / "first"), tmp_path / "in")
        _, rows, again = bring(kind)
        assert rows["u1"].choices == ("it rained", "it – snowed")
        assert (rows["u1"].label, again.answer, again.menu) == ("it rained", "choice", True)

    def test_what_a_format_has_no_place_for_is_said(self, tmp_path):
        rows, _ = everything(tmp_path / "first")
        text = replace(rows[0], id="u4", audio=None, offset_s=0.0, duration_s=None, words=None)
        soundfile.write(tmp_path / "first" / "audio" / "two.wav", [[0.1, 0.2]] * 8000, 16000)
        stereo = replace(rows[2], id="u5", audio="audio/two.wav", duration_s=0.5)
        write_manifest([*rows, text, stereo], tmp_path / "first" / "manifest.jsonl")
        left = {
            kind: [row.line for row in export_dataset(kind, str(tmp_path / "first"), tmp_path / kind).left_out]
            for kind in ("nemo", "lhotse", "hf")
        }
        assert left == {"nemo": [4], "lhotse": [4, 5], "hf": []}

    def test_a_taken_folder_and_an_unknown_format(self, tmp_path):
        everything(tmp_path / "first")
        with pytest.raises(SourceError, match="exists; choose another folder"):
            export_dataset("nemo", str(tmp_path / "first"), tmp_path / "first")
        with pytest.raises(SourceError, match="'kaldi' is no format; known: nemo, lhotse, hf"):
            export_dataset("kaldi", str(tmp_path / "first"), tmp_path / "o")

    def test_linked_recordings_stay_where_they_are(self, tmp_path):
        everything(tmp_path / "first")
        export_dataset("nemo", f"{tmp_path / 'first'}:dev", tmp_path / "out", link=True)
        line = json.loads((tmp_path / "out" / "dev_manifest.json").read_text())
        assert line["audio_filepath"] == str(tmp_path / "first" / "audio" / "alone.flac")
        assert sorted(os.listdir(tmp_path / "out")) == ["dev_manifest.json", "task.yaml"]


def import_dataset_again(tmp_path: Path) -> str:
    """The data set `first` with recordings named by their hash, as `attune import` leaves it, in `data`: its id."""
    export_dataset("lhotse", str(tmp_path / "first"), tmp_path / "cuts")
    report = import_dataset(tmp_path / "cuts", tmp_path / "data", kind="lhotse")
    original, imported = (load(str(tmp_path / name)) for name in ("first", "data"))
    plain = [replace(row, audio=None) for row in original]
    assert [replace(row, audio=None) for row in sorted(imported, key=lambda row: row.id)] == plain
    return report.id


class TestCommands:
    def test_import_with_a_kind_and_export(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "in" / "dev-clean" / "84" / "1"
        clip(folder / "84-1-0000.flac", 1)
        (folder / "84-1.trans.txt").write_text("84-1-0000 HELLO\n84-1-0001 GONE\n84-1-0002 GONE\n")
        assert main(["import", "librispeech", "in", "--out", "data"]) == 0
        said = capsys.readouterr().out
        assert "1 of 3 rows from in (librispeech), 2 left out" in said
        assert "left out: 2 × audio … is missing" in said
        assert main(["validate", "data"]) == 0
        assert main(["export", "nemo", "data", "--out", "nemo"]) == 0
        assert "nemo: 1 rows as nemo, 0 left out" in capsys.readouterr().out
        assert main(["export", "hf", "data", "--out", "hf", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"rows": 1, "by_split": {"dev-clean": 1}, "left_out": []}

    def test_options_that_would_not_be_heeded_are_refused(self, tmp_path, bring):
        folder = tmp_path / "in" / "dev-clean" / "84" / "1"
        clip(folder / "84-1-0000.flac", 1)
        (folder / "84-1.trans.txt").write_text("84-1-0000 HELLO\n")
        for options, says in (
            ({"target": "de"}, "--target is for must-c; leave it out"),
            ({"config": "x"}, "--config is for italic and common-voice; leave it out"),
            ({"columns": {"offset_s": "start"}}, "--offset-s has no meaning for librispeech"),
            ({"encoding": "cp1252"}, "--encoding has no meaning for librispeech"),
            ({"language": "fr"}, "librispeech: its rows are in en, not in --language fr"),
        ):
            with pytest.raises(SourceError, match=says):
                bring("librispeech", **options)
        assert len(bring("librispeech", language="en")[1]) == 1

    def test_mistakes_are_said(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for words, says in (
            (["slurp"], "slurp is a kind of source; name the folder too"),
            (["slrup", "."], "'slrup' is no kind of source; did you mean 'slurp'?"),
            (["slurp", "a", "b"], "one kind and one source are read at a time"),
            (["slurp", "gone"], "gone: no such file or folder"),
        ):
            assert main(["import", *words, "--out", "data"]) == 2
            assert says in capsys.readouterr().err


def test_every_kind_is_in_the_page_about_corpora():
    page = (Path(__file__).parent.parent / "docs" / "corpora.md").read_text()
    assert [kind for kind in KINDS if f"| `{kind}` |" not in page] == []


def test_data_sets_called_as_published_corpora_are_known_to_be_made_by_import():
    assert set(PUBLISHED) == set(CORPORA) - {"nemo", "lhotse", "kaldi"}
