"""`attune import` of sources with something wrong: what is refused, by row or as a whole, and in which words."""

import gzip
import json
import os
from dataclasses import replace

import pytest
from sources import EN, Bring, clip

from attune.importing import BadRow, ImportOptions, SourceError, import_dataset
from trainer.manifest import load


@pytest.fixture
def bring(tmp_path):
    return Bring(tmp_path)


def reasons(report):
    return {bad.line: bad.reason for bad in report.bad}


def test_every_faulty_row_is_left_out_however_many_there_are(bring, tmp_path):
    clip(tmp_path / "in" / "a.wav")
    lines = [f"a.wav,say {n},x,{9 if n else ''}" for n in range(1102)]
    report, rows, _ = bring("t.csv", "\n".join(["audio,text,label,duration_s", *lines]))
    assert len(rows) == 1
    assert len(report.bad) == 1101  # more than a report keeps
    assert list(report.left_out.values()) == [1101]


class TestTheTeamsOwnSplit:
    def table(self, values):
        lines = [f"say {n},{'xy'[n % 2]},s{n},{value}" for n, value in enumerate(values)]
        return "\n".join(["text,label,speaker,split", *lines])

    def test_one_unknown_value_does_not_undo_it(self, bring):
        given = ["train"] * 6 + ["test"] * 3 + ["tset", ""]
        report, rows, _ = bring("t.csv", self.table(given))
        assert [row.split for row in rows] == given[:9]
        assert report.columns["split"] == "split"
        assert sorted(reasons(report)) == [11, 12]
        assert reasons(report)[11].startswith("split 'tset': must be train, dev, test; correct it")

    def test_another_thing_under_that_name_is_said(self, bring):
        report, rows, _ = bring("t.csv", self.table(["clean", "noisy", "clean", "test"]))
        assert len(rows) == 4
        assert "split" not in report.columns
        assert rows[0].meta == {"split": "clean"}
        note = next(note for note in report.notes if "'split' is not used" in note)
        assert "'clean', 'noisy', 'test'" in note
        assert "--split split" in note

    def test_the_file_s_split_holds_whatever_its_columns_say(self, tmp_path):
        (tmp_path / "in").mkdir()
        for name in ("train", "test"):
            lines = "".join(f"{name} {n},x,fold{n}\n" for n in range(3))
            (tmp_path / "in" / f"{name}.csv").write_text("text,label,split\n" + lines)
        import_dataset(tmp_path / "in", tmp_path / "out", EN)
        rows = load(str(tmp_path / "out"))
        assert all(row.text and row.text.split()[0] == row.split for row in rows)
        assert rows[0].meta == {"split_in_file": "fold0"}

    def test_folders_of_clips(self, tmp_path):
        for n, name in enumerate(["train/a", "train/b", "test/a", "tset/a"]):
            clip(tmp_path / "in" / name / f"{n}.wav", n)
        report = import_dataset(tmp_path / "in", tmp_path / "out", EN)
        assert report.by_split == {"test": 1, "train": 2}
        assert [bad.reason.split(":")[0] for bad in report.bad] == ["split ''"]

    def test_a_label_may_be_called_test(self, tmp_path):
        for n, name in enumerate(["yes", "no", "test", "yes"]):
            clip(tmp_path / "in" / name / f"{n}.wav", n)
        report = import_dataset(tmp_path / "in", tmp_path / "out", EN)
        assert sorted(str(row.label) for row in load(str(tmp_path / "out"))) == ["no", "test", "yes", "yes"]
        assert any("only 1 of 4 clips" in note for note in report.notes)


class TestRows:
    def test_seconds_that_are_none(self, bring, tmp_path):
        clip(tmp_path / "in" / "a.wav", seconds=2.0)
        given = ["0", "nan", "inf", "-1", "1e300", "soon"]
        lines = [f"a.wav,x{n},{value},0.5" for n, value in enumerate(given)]
        lines += ["a.wav,x8,0,nan", "a.wav,x9,1,0.5", "a.wav,x7,9,"]
        report, rows, _ = bring("t.csv", "\n".join(["audio,label,offset,duration", *lines]))
        assert [(row.offset_s, row.duration_s) for row in rows] == [(0.0, 0.5), (1.0, 0.5)]
        assert sorted(reasons(report)) == [3, 4, 5, 6, 7, 8, 10]
        assert reasons(report)[3].startswith("offset 'nan': must be seconds")
        assert reasons(report)[8].startswith("duration 'nan': must be seconds")

    def test_values_without_a_place_in_json(self, bring):
        cells = ['"ok","age":NaN', '"oh","age":Infinity', '"\\ud800"', '"in","deep":{"a":NaN}']
        content = "\n".join(f'{{"label":"x","text":{cell}}}' for cell in cells)
        report, rows, _ = bring("t.jsonl", content)
        assert [(row.text, row.meta) for row in rows] == [("ok", None)]
        assert {line: reason.split(" ")[0] for line, reason in reasons(report).items()} == {
            2: "age", 3: "text", 4: "deep"
        }  # fmt: skip

    def test_a_huge_cell_is_no_quote_problem(self, bring):
        for name, comma in (("t.csv", ","), ("t.tsv", "\t")):
            content = f"text{comma}label\na{comma}x\n{'b' * 200_000}{comma}y\nc{comma}x\n"
            report, rows, _ = bring(name, content, out=name)
            assert [row.text for row in rows] == ["a", "c"]
            assert reasons(report) == {3: "column 'text' holds 200000 characters, at most 100000 are read; shorten it"}

    def test_a_quote_left_open_in_a_long_table_is_one(self, bring):
        with pytest.raises(SourceError, match=r"t\.csv:2: quotes do not match"):
            bring("t.csv", 'text,label\n"a,x\n' + "some words,y\n" * 20_000)

    def test_languages_by_row(self, bring):
        content = "text,label,lang\na,x,en\nb,y,de\nc,x,German\n"
        report, rows, _ = bring("t.csv", content, ImportOptions())
        assert [row.language for row in rows] == ["en", "de"]
        assert reasons(report) == {4: "language 'German': must be a BCP-47 tag, e.g. it or fr-FR"}

    def test_a_column_of_language_names_gives_way_to_the_option(self, bring):
        content = "text,label,lang\na,x,English\nb,y,English\n"
        with pytest.raises(SourceError, match=r"language is unknown \(.*'English'.*--language it"):
            bring("t.csv", content, ImportOptions())
        report, rows, _ = bring("t.csv", content)
        assert {row.language for row in rows} == {"en"}
        assert any("'lang' is not used" in note for note in report.notes)


class TestTheWhole:
    @pytest.mark.parametrize("content", [b'{"text":"a","label":"x"}\n', gzip.compress(b"{}" * 999)[:-9]])
    def test_no_gzip_file(self, bring, content):
        with pytest.raises(SourceError, match=r"t\.jsonl\.gz: no whole gzip file .*copy it again"):
            bring("t.jsonl.gz", content)

    def test_gzip_in_another_encoding(self, bring):
        content = gzip.compress('{"text":"café","label":"x"}\n'.encode("cp1252"))
        with pytest.raises(SourceError, match=r"t\.jsonl\.gz:1: not UTF-8.*--encoding cp1252"):
            bring("t.jsonl.gz", content)
        _, rows, _ = bring("t.jsonl.gz", content, replace(EN, encoding="cp1252"))
        assert rows[0].text == "café"

    def test_out_below_a_file(self, bring, tmp_path):
        (tmp_path / "taken").write_text("")
        with pytest.raises(SourceError, match=r"taken/out: cannot be made, .*taken is a file; choose another"):
            bring("t.csv", "text,label\na,x\n", out="taken/out")

    def test_out_that_fails_while_writing_leaves_nothing(self, bring, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "rename", full)
        with pytest.raises(SourceError, match=r"out: cannot be written \(No space left on device.*make room"):
            bring("t.csv", "text,label\na,x\n")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_out_without_permission_is_said_before_the_source_is_read(self, bring, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
        with pytest.raises(SourceError, match="no permission to write"):
            bring("t.csv", "", out="locked/out")

    @pytest.mark.parametrize("language", ["English", "EN", "en_US", ""])
    def test_a_language_that_is_no_tag(self, bring, language):
        with pytest.raises(SourceError, match=f"--language '{language}': must be a BCP-47 tag, e.g. it or fr-FR"):
            bring("t.csv", "text,label\na,x\n", ImportOptions(language=language))

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (ImportOptions(), "--language it"),
            (replace(EN, audio_root="nowhere"), "--audio-root 'nowhere'"),
            (replace(EN, encoding="utf8k"), "--encoding 'utf8k'"),
            (replace(EN, speaker_pattern="("), r"--speaker-pattern '\('"),
            (replace(EN, speaker_pattern="a"), "--speaker-pattern 'a'"),
            (replace(EN, answer="yes"), "--answer 'yes'"),
            (replace(EN, columns={"text": "txet"}), "--text txet: no such column"),
        ],
    )
    def test_options_are_named_as_on_the_command_line(self, bring, options, says):
        with pytest.raises(SourceError, match=says):
            bring("t.csv", "text,label\na,x\n", options)


class TestReport:
    def test_a_row_without_line(self):
        assert str(BadRow(None, "gone")) == "gone"
        assert str(BadRow(3, "gone")) == "line 3: gone"

    def test_lines_say_all(self, bring, tmp_path):
        clip(tmp_path / "in" / "a.wav")
        report, _, _ = bring("t.csv", "audio,text,label\na.wav,hi,x\n,ho,y\n,hu,\n")
        said = "\n".join(report.lines())
        assert "  left out: line 4: no label" in said
        assert "data set: note: no_speaker" in said
        assert "line None" not in said
        assert "nothing was written" not in said

    def test_again_says_that_nothing_was_written(self, bring, tmp_path):
        bring("t.csv", "text,label\na,x\nb,y\n")
        again, _, _ = bring("t.csv", "text,label\na,x\nb,y\n")
        assert again.lines()[-1].endswith("was there already; nothing was written")
        assert not any("task.yaml" in note for note in again.notes)
        other, _, task = bring("t.csv", "text,label\na,x\nb,y\n", replace(EN, instruction="Which?"))
        assert not other.written
        assert task.instruction != {"en": "Which?"}
        assert any("task.yaml says otherwise" in note for note in other.notes)
        assert "says otherwise" not in json.dumps(json.loads((tmp_path / "out" / "report.json").read_text()))
