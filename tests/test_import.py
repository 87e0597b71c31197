"""`attune import` of tables and folders: the mean things in them, the split, the immutable result."""

import hashlib
import json

import numpy as np
import openpyxl
import pyarrow.parquet as parquet
import pytest
import soundfile
from sources import EN, Bring, clip

from attune.importing import ImportOptions, SourceError, import_dataset
from attune.importing.split import split_groups
from trainer.manifest import load


@pytest.fixture
def bring(tmp_path):
    return Bring(tmp_path)


class TestTables:
    def test_a_table_of_recordings(self, bring, tmp_path):
        for n in range(12):
            clip(tmp_path / "in" / "clips" / f"c {n}.wav", n)
        lines = ["Audio File,Sentence,Command,Speaker ID,accent"]
        lines += [f'clips/c {n}.wav,"say ""{n}"", please",{["on", "off"][n % 2]},s{n // 3},x' for n in range(12)]
        report, rows, task = bring(
            "orders.csv", "\n".join(lines), ImportOptions(language="en", columns={"audio": "Audio File"})
        )
        assert report.columns == {
            "audio": "Audio File", "text": "Sentence", "label": "Command", "speaker": "Speaker ID"
        }  # fmt: skip
        assert (report.rows, report.bad, report.recordings) == (12, [], 12)
        assert report.seconds == pytest.approx(3.6)
        assert (task.answer, task.labels) == ("label", ["off", "on"])
        assert rows[1].text == 'say "1", please'
        assert rows[1].meta == {"accent": "x"}
        assert rows[1].duration_s == pytest.approx(0.3)
        splits = {}
        for row in rows:
            splits.setdefault(row.speaker, set()).add(row.split)
        assert all(len(found) == 1 for found in splits.values())
        assert report.speakers_by_split == {"dev": 1, "test": 1, "train": 2}
        assert report.validation["errors"] == 0

    def test_what_is_written_is_whole_and_named_by_its_hash(self, bring, tmp_path):
        clip(tmp_path / "in" / "a b.wav")
        report, rows, _ = bring("t.csv", "audio,text,label\na b.wav,hi,x\n,ho,y\n")
        out = tmp_path / "out"
        assert sorted(p.name for p in out.iterdir()) == [
            "README.md", "audio", "index.parquet", "manifest.jsonl", "report.json", "task.yaml"
        ]  # fmt: skip
        manifest = (out / "manifest.jsonl").read_bytes()
        assert report.id == hashlib.sha256(manifest).hexdigest()
        stored = json.loads((out / "report.json").read_text())
        assert stored["id"] == report.id
        assert str(tmp_path) not in manifest.decode() + json.dumps(stored)
        index = parquet.read_table(out / "index.parquet").to_pylist()
        assert [row["id"] for row in index] == [row.id for row in rows]
        assert manifest[index[1]["manifest_byte"] :].startswith(b'{"id":"t-000003"')
        assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]

    def test_semicolons_bom_and_excel_export(self, bring):
        report, rows, _ = bring("t.csv", "\ufefftext;label\r\nes ist 1,5 Uhr, oder;eins\r\nzwölf;zwei\r\n".encode())
        assert [(row.text, row.label) for row in rows] == [("es ist 1,5 Uhr, oder", "eins"), ("zwölf", "zwei")]
        assert any("';'" in note for note in report.notes)

    def test_utf16_as_excel_writes_unicode_text(self, bring):
        _, rows, _ = bring("t.csv", "text\tlabel\nقهوة\tx\nشاي\ty\n".encode("utf-16"))
        assert [row.text for row in rows] == ["قهوة", "شاي"]

    def test_not_utf8_names_the_line_and_the_way_out(self, bring):
        content = "text,label\nok,x\ncafé,y\n".encode("cp1252")
        with pytest.raises(SourceError, match=r"t\.csv:3: not UTF-8.*cp1252"):
            bring("t.csv", content)
        _, rows, _ = bring("t.csv", content, ImportOptions(language="en", encoding="cp1252"))
        assert rows[1].text == "café"

    def test_a_missing_header_is_said(self, bring):
        for content in ("a.wav,hello there,on\nb.wav,bye,off\n", "1,2\n3,4\n", "text,text\na,b\n"):
            with pytest.raises(SourceError, match=r"t\.csv:1: .*(header|twice)"):
                bring("t.csv", content)

    def test_quotes_over_lines_and_quotes_that_do_not_match(self, bring):
        _, rows, _ = bring("t.csv", 'text,label\n"two\nlines",x\nnext,y\n')
        assert [(row.id, row.text) for row in rows] == [("t-000002", "two lines"), ("t-000004", "next")]
        with pytest.raises(SourceError, match=r"u\.csv:3: quotes do not match"):
            bring("u.csv", 'text,label\na,x\n"b,y\nc,z\n', out="u")
        report, rows, _ = bring("v.tsv", 'text\tlabel\n"a" b\tx\nc\ty\n', out="v")
        assert rows[0].text == '"a" b'
        assert any("quotes" in note for note in report.notes)

    def test_rows_with_too_many_cells_and_empty_labels_are_listed(self, bring):
        report, rows, _ = bring("t.csv", "text,label\na,x\nb,y,z\nc,\n,x\nd,y\n")
        assert [row.text for row in rows] == ["a", "d"]
        assert [(bad.line, bad.reason.split(" ")[0]) for bad in report.bad] == [(3, "has"), (4, "no"), (5, "neither")]
        assert report.rows_read == 5

    def test_copies_leave_with_the_line_they_repeat(self, bring):
        report, rows, _ = bring("t.csv", "text,label\na,x\nb,y\na,x\na,y\n")
        assert len(rows) == 3
        assert [(bad.line, bad.reason) for bad in report.bad] == [(4, "repeats line 2")]
        report, rows, _ = bring("u.csv", "id,text,label\n1,a,x\n2,a,x\n", out="u")
        assert [row.id for row in rows] == ["1", "2"]  # two utterances of a published set may say the same

    def test_excel_with_numbers_as_labels(self, bring, tmp_path):
        book = openpyxl.Workbook()
        book.active.append(["utterance", "label", "speaker"])
        for n in range(4):
            book.active.append([f"row {n}", float(n % 2) if n else 0, 100 + n])
        book.create_sheet("notes")
        (tmp_path / "in").mkdir()
        book.save(tmp_path / "in" / "t.xlsx")
        report, rows, task = bring("t.xlsx", None)
        assert task.labels == ["0", "1"]
        assert [(row.label, row.speaker) for row in rows][:2] == [("0", "100"), ("1", "101")]
        assert any("sheet" in note for note in report.notes)
        with pytest.raises(SourceError, match=r"--sheet is for \.xlsx workbooks"):
            bring("t.csv", "text,intent\nhello,greet\n", ImportOptions(language="en", sheet="notes"), out="y")
        with pytest.raises(SourceError, match="no sheet 'x'; it has: Sheet, notes"):
            bring("t.xlsx", None, ImportOptions(language="en", sheet="x"), out="x")

    def test_audio_missing_unreadable_silent_or_on_another_machine(self, bring, tmp_path):
        clip(tmp_path / "in" / "clips" / "A.wav", 1)
        clip(tmp_path / "in" / "clips" / "b.wav", 2)
        (tmp_path / "in" / "bad.wav").write_text("no sound")
        soundfile.write(tmp_path / "in" / "silent.wav", np.zeros(8000), 16_000)
        table = [
            "audio,label",
            "C:\\data\\clips\\a.WAV,x",  # another machine, another case
            "gone.wav,x",
            "bad.wav,x",
            "silent.wav,y",
            "clips/b,y",  # without suffix
            "https://host/x.wav,y",
        ]
        report, rows, _ = bring("t.csv", "\n".join(table))
        assert [row.label for row in rows] == ["x", "y"]
        assert [bad.line for bad in report.bad] == [3, 4, 5, 7]
        for bad, says in zip(report.bad, ["missing", "unreadable", "silent", "download"], strict=True):
            assert says in bad.reason

    def test_columns_are_told_by_content_and_the_guess_is_said(self, bring, tmp_path):
        for n in range(9):
            clip(tmp_path / "in" / f"{n}.wav", n)
        lines = "\n".join(f"{n}.wav,please do thing number {n},{'ab'[n % 2]}" for n in range(9))
        report, _, _ = bring("t.csv", f"col1,col2,col3\n{lines}\n")
        assert report.columns == {"audio": "col1", "text": "col2", "label": "col3"}
        assert len([note for note in report.notes if "col" in note]) == 3

    def test_what_cannot_be_known_is_asked_for(self, bring):
        with pytest.raises(SourceError, match="--language it"):
            bring("t.csv", "text,label\na,x\n", ImportOptions())
        with pytest.raises(SourceError, match=r"--label labl: no such column; did you mean 'label'"):
            bring("t.csv", "text,label\na,x\n", ImportOptions(language="en", columns={"label": "labl"}))
        with pytest.raises(SourceError, match=r"'colour' is no role"):
            bring("t.csv", "text,label\na,x\n", ImportOptions(language="en", columns={"colour": "label"}))
        with pytest.raises(SourceError, match="neither labels nor recordings"):
            bring("t.csv", "text,label\na,\n")
        with pytest.raises(SourceError, match=r"no usable row of 1: line 2: no label"):
            bring("t.csv", "text,label\na,\n", ImportOptions(language="en", columns={"label": "label"}))

    def test_the_source_s_own_split_and_language(self, bring):
        table = "text,label,partition,locale\na,x,train,de\nb,y,validation,fr\nc,x,TEST,de\n"
        _, rows, _ = bring("t.csv", table, ImportOptions())
        assert [(row.split, row.language) for row in rows] == [("train", "de"), ("dev", "fr"), ("test", "de")]


class TestFolders:
    def test_labels_are_folders_and_speech_commands_names_speakers(self, tmp_path):
        for n in range(12):
            clip(tmp_path / "in" / ["yes", "no"][n % 2] / f"spk{n // 2}_nohash_{n % 2}.wav", n)
        clip(tmp_path / "in" / "_background_noise_" / "x.wav")
        report = import_dataset(tmp_path / "in", tmp_path / "out", EN)
        rows = load(str(tmp_path / "out"))
        assert {(row.label, row.speaker) for row in rows} >= {("yes", "spk0"), ("no", "spk5")}
        assert len(rows) == 12
        assert any("_background_noise_" in note for note in report.notes)

    def test_split_folders_transcripts_and_a_pattern_for_speakers(self, tmp_path):
        for split in ("train", "test"):
            for n in range(2):
                path = clip(tmp_path / "in" / split / f"{split}anna-{n}.wav", n + 10 * (split == "test"))
                path.with_suffix(".txt").write_text(f"\ufeffsentence {split} {n}\n", encoding="utf-8")
        options = ImportOptions(language="en", speaker_pattern=r"^(\w+)-")
        report = import_dataset(tmp_path / "in", tmp_path / "out", options)
        rows = load(str(tmp_path / "out"))
        assert {(row.split, row.speaker) for row in rows} == {("train", "trainanna"), ("test", "testanna")}
        assert report.task == "transcribe"
        assert rows[0].text == "sentence test 0"
        with pytest.raises(SourceError, match="group"):
            import_dataset(tmp_path / "in", tmp_path / "o2", ImportOptions(language="en", speaker_pattern="anna"))

    def test_audio_folder_with_metadata(self, tmp_path):
        clip(tmp_path / "in" / "data" / "a.wav")
        (tmp_path / "in" / "metadata.csv").write_text("file_name,transcription\ndata/a.wav,hello\n")
        assert import_dataset(tmp_path / "in", tmp_path / "out", EN).recordings == 1

    def test_one_table_per_split(self, tmp_path):
        for n, name in enumerate(["train", "validation", "en.test"]):
            clip(tmp_path / "in" / "clips" / f"{n}.wav", n)
            (tmp_path / "in" / f"{name}.csv").write_text(f"path,label\nclips/{n}.wav,x\ngone.wav,x\n")
        report = import_dataset(tmp_path / "in", tmp_path / "out", EN)
        assert report.by_split == {"dev": 1, "test": 1, "train": 1}
        assert [bad.line for bad in report.bad] == [3, 6, 9]
        assert any(note == "train.csv is train, its lines count from 4" for note in report.notes)

    def test_nothing_to_import(self, tmp_path):
        (tmp_path / "in").mkdir()
        with pytest.raises(SourceError, match="no clips"):
            import_dataset(tmp_path / "in", tmp_path / "out", EN)
        clip(tmp_path / "in" / "a.wav")
        with pytest.raises(SourceError, match="one folder per label"):
            import_dataset(tmp_path / "in", tmp_path / "out", EN)
        with pytest.raises(SourceError, match="no such file"):
            import_dataset(tmp_path / "absent.csv", tmp_path / "out", EN)


class TestImmutable:
    def test_again_is_nothing_and_another_is_refused(self, bring, tmp_path):
        first, _, _ = bring("t.csv", "text,label\na,x\nb,y\n")
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
        again, _, _ = bring("t.csv", "text,label\na,x\nb,y\n")
        assert (first.written, again.written, again.id) == (True, False, first.id)
        with pytest.raises(SourceError, match="holds another data set"):
            bring("t.csv", "text,label\na,x\nb,x\n")
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before

    def test_a_folder_with_something_else_is_left_alone(self, bring, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(SourceError, match="no data set of ours"):
            bring("t.csv", "text,label\na,x\n")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]

    def test_linked_recordings_stay_where_they_are(self, bring, tmp_path):
        path = clip(tmp_path / "in" / "a.wav")
        _, rows, _ = bring("t.csv", "audio,label\na.wav,x\n", ImportOptions(language="en", link=True))
        assert rows[0].audio == str(path)
        assert not (tmp_path / "out" / "audio").exists()


class TestSplit:
    def test_few_groups_fill_every_split_and_none_is_divided(self):
        groups = [f"s{n % 5}" for n in range(100)]
        splits = split_groups(groups)
        assert {groups[n]: splits[n] for n in range(100)} == {groups[n]: splits[n] for n in range(5)}
        assert sorted(splits.count(s) for s in ("train", "dev", "test")) == [20, 20, 60]

    def test_a_dominant_speaker_stays_in_train(self):
        groups = ["big"] * 80 + ["a"] * 10 + ["b"] * 10
        assert split_groups(groups)[0] == "train"

    def test_one_speaker_is_all_train(self):
        assert set(split_groups(["s"] * 10)) == {"train"}

    def test_many_groups_meet_the_shares_and_never_move(self):
        groups = [f"u{n}" for n in range(2000)]
        splits = split_groups(groups)
        assert splits.count("test") == pytest.approx(200, abs=45)  # 3 standard deviations of a binomial
        assert split_groups([*groups, "new"])[:2000] == splits
        assert split_groups(groups, seed=1) != splits
        # Golden: the split of a published data set must come out the same next year.
        assert [n for n in range(60) if splits[n] == "test"] == [6, 10, 15, 17, 28, 36, 44, 54]

    def test_held_out_sentences_are_not_trained_on_as_text(self, bring, tmp_path):
        lines = ["audio,text,label,speaker"]
        for n in range(20):
            clip(tmp_path / "in" / f"{n}.wav", n)
            lines += [f"{n}.wav,sentence {n},{n % 2},s{n}", f",Sentence {n},{n % 2},"]
        _, rows, _ = bring("t.csv", "\n".join(lines))
        spoken = {row.text.lower(): row.split for row in rows if row.audio}
        held_out = [row for row in rows if not row.audio and spoken[row.text.lower()] != "train"]
        assert held_out
        assert all(row.split == spoken[row.text.lower()] for row in held_out)
