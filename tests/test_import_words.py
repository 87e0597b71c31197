"""`attune words`: CTM and TextGrid beside a data set."""

import json

import pytest
import soundfile
import toy

from attune.cli import main
from attune.importing import SourceError
from attune.importing.words import add_words, read_ctm, read_textgrids, timed
from trainer.manifest import Utterance, load

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "x ""7"" y"
    item [2]:
        class = "IntervalTier"
        name = "anna - words"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.75
            text = "grüne"
        intervals [3]:
            xmin = 0.75
            xmax = 1.5e0
            text = "3"
"""
SHORT = '"ooTextFile"\n"TextGrid"\n\n0\n1\n<exists>\n1\n"IntervalTier"\n"all"\n0\n1\n2\n0\n0.5\n"sil"\n0.5\n1\n"ja"\n'
GREEN = [{"text": "", "start": 0, "end": 0.25}, {"text": "grüne", "start": 0.25, "end": 0.75},
         {"text": "3", "start": 0.75, "end": 1.5}]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_textgrids_long_and_short(tmp_path, encoding):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.TextGrid").write_text(LONG, encoding)
    (tmp_path / "b.TextGrid").write_text(SHORT, encoding)
    found = read_textgrids(tmp_path)
    assert found["a"] == GREEN
    assert [w["text"] for w in found["b"]] == ["sil", "ja"]


def test_textgrids_of_one_name_are_told_apart_by_nothing(tmp_path):
    for speaker in ("anna", "bert"):
        (tmp_path / speaker).mkdir()
        (tmp_path / speaker / "001.TextGrid").write_text(SHORT)
    with pytest.raises(SourceError, match=r"anna/001.TextGrid and .*bert/001.TextGrid: .*give each its own"):
        read_textgrids(tmp_path)


@pytest.mark.parametrize(("text", "words"), [
    (LONG.replace("anna - words", "other"), "which tier has the words"), ("nothing", "cannot be read as a TextGrid"),
    (LONG[:-60], "cannot be read as a TextGrid"),
])  # fmt: skip
def test_a_textgrid_that_cannot_be_read_is_named(tmp_path, text, words):
    (tmp_path / "a.TextGrid").write_text(text)
    with pytest.raises(SourceError, match=f"a.TextGrid: {words}"):
        read_textgrids(tmp_path)


def test_ctm_is_sorted_and_a_bad_line_named(tmp_path):
    path = tmp_path / "x.ctm"
    path.write_text(";; made by hand\nr 1 0.5 0.25 two 0.9\n\nr 1 0.0 0.5 one\n")
    one, two = {"text": "one", "start": 0.0, "end": 0.5}, {"text": "two", "start": 0.5, "end": 0.75}
    assert read_ctm(path) == {"r": [one, two]}
    for wrong in ("half 1", "0 inf", "nan 1", "1e308 1e308"):
        path.write_text(f"r 1 0.5 0.25 two\nr 1 {wrong} three\n")
        with pytest.raises(SourceError, match=r"x.ctm:2: must be: recording channel start duration word"):
            read_ctm(path)


def test_words_come_to_the_utterance_that_holds_them():
    """By the id as they stand; by the recording's name those within the utterance, from its start."""
    said = (("a", 0, 1), ("<eps>", 1, 1.5), ("b", 1.5, 2.25), ("c", 2.5, 3))
    words = [{"text": t, "start": s, "end": e} for t, s, e in said]
    row = Utterance("u", "t", "en", "train", "b", audio="x/rec.wav", offset_s=1.25, duration_s=0.75)
    assert timed(row, {"rec": words}).words == ({"text": "b", "start": 0.25, "end": 0.75},)
    assert [w["text"] for w in timed(row, {"u": words[:1]}).words] == ["a"]
    assert timed(row, {"other": words}) is row
    silent = Utterance("u", "t", "da", "train", "sil", audio="rec.wav", duration_s=9.0)
    marks = {"rec": [{"text": "sil", "start": 0, "end": 1}]}
    assert timed(silent, marks).words[0]["text"] == "sil"
    assert timed(Utterance("u", "t", "da", "train", "ja", audio="rec.wav", duration_s=9.0), marks).words is None


def test_recordings_of_one_name_are_told_apart_by_ids_alone(tmp_path):
    rows = [{"id": f"u{n}", "task": "transcribe", "language": "en", "split": "train", "text": "one", "label": None,
             "audio": f"s{n}/001.wav", "duration_s": 0.5} for n in range(2)]  # fmt: skip
    for row in rows:
        (tmp_path / "data" / row["audio"]).parent.mkdir(parents=True)
        soundfile.write(tmp_path / "data" / row["audio"], toy.wave(300, 0.5), 16000)
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    times = [{"text": "one", "start": 0.0, "end": 0.5}]
    with pytest.raises(SourceError, match=r"s0/001.wav and .*s1/001.wav are both 001"):
        add_words(str(tmp_path / "data"), {"001": times}, tmp_path / "out")
    add_words(str(tmp_path / "data"), {"u0": times, "u1": times}, tmp_path / "out")
    assert [len(row.words) for row in load(str(tmp_path / "out"))] == [1, 1]


def test_the_command_makes_a_new_data_set(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"id": f"u{n}", "task": "transcribe", "language": "en", "split": "train", "text": "one two", "label": None,
             "audio": f"clip{n}.wav", "duration_s": 0.5} for n in range(3)]  # fmt: skip
    for row in rows:
        soundfile.write(folder / row["audio"], toy.wave(300, 0.5), 16000)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines = [f"clip{n} 1 {0.25 * k} 0.2 {w}" for n in range(2) for k, w in enumerate(("one", "two" if n else "too"))]
    (tmp_path / "x.ctm").write_text("\n".join(lines))
    command = ["words", str(folder), "--ctm", str(tmp_path / "x.ctm"), "--out", str(tmp_path / "new")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "times of words for 2 of 3 recordings" in said
    assert "without times: u2" in said
    assert "words_differ: words 'one too'" in said
    made = {row.id: row for row in load(str(tmp_path / "new"))}
    assert [w["start"] for w in made["u1"].words] == [0.0, 0.25]
    assert made["u2"].words is None
    assert soundfile.info(made["u0"].audio).frames == 8000
    assert json.loads((folder / "manifest.jsonl").read_text().splitlines()[0]) == rows[0]
    (tmp_path / "x.ctm").write_text("other 1 0 1 word\n")
    assert main([*command[:-1], str(tmp_path / "none")]) == 2
    assert "none of its 3 recordings or ids is among the names with times (other" in capsys.readouterr().err
