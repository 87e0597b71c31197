"""`attune build`: texts spoken by a real command, resumed, refused; documents with summaries become a data set."""

import json
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import soundfile
from sources import clip, json_lines

from attune.building import Engine, PairOptions, Speech, build_speech, build_summaries
from attune.building.voices import voice_of, voices_of
from attune.cli import main
from attune.importing import SourceError
from trainer.manifest import load, write_manifest
from trainer.spec import read_task
from trainer.utterance import Utterance

TTS = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).with_name("tiny_tts.py"))])
PLAIN = f"{TTS} {{wav}} {{text_file}}"


def speech(template=PLAIN, **said) -> Speech:
    return Speech(Engine.of(template, said.pop("timeout_s", 60)), workers=2, **said)


def sentences(folder: Path, count=4, splits=("train", "dev", "test")) -> str:
    """A data set of labelled sentences, `count` of each split."""
    folder.mkdir()
    (folder / "task.yaml").write_text("name: tone\ninstruction: {en: 'Which?'}\nanswer: label\nlabels: [a, b]\n")
    rows = [
        Utterance(f"{s}-{n}", "tone", "en", s, f"{s} says {n}", "ab"[n % 2], meta={"n": n})
        for s in splits
        for n in range(count)
    ]
    write_manifest(rows, folder / "manifest.jsonl")
    return str(folder)


def table(path: Path, rows: int = 12, **columns) -> Path:
    """Documents with summaries; `columns`: further cells by column, from the row's number."""
    header = ["document", "summary", *columns]
    lines = [[f"long text number {n}", f"short {n}", *(str(f(n)) for f in columns.values())] for n in range(rows)]
    path.write_text("".join(",".join(cells) + "\n" for cells in [header, *lines]))
    return path


class TestEngine:
    def test_speaks_by_file_and_by_standard_input(self, tmp_path):
        for name, template in (("file", PLAIN), ("stdin", f"{TTS} {{wav}}")):
            Engine.of(template).speak("olá; rm -rf $HOME 'x'", tmp_path / f"{name}.wav", voice="", language="pt")
        one, other = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("file", "stdin"))
        assert (one == other).all()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file.wav", "stdin.wav"]

    def test_what_replaces_a_name_stays_one_argument(self, tmp_path):
        """A voice with blanks, quotes and braces reaches the command as it is."""
        said = tmp_path / "said.json"
        program = "import sys,json,shutil; json.dump(sys.argv[2:], open(sys.argv[1],'w')); shutil.copy(*sys.argv[2:4])"
        template = shlex.join([sys.executable, "-c", program, str(said), str(clip(tmp_path / "a.wav")), "{wav}"])
        voice = "a b'; echo {wav} $(x)"
        Engine.of(template + " {voice} -l={language}").speak("x", tmp_path / "o.wav", voice=voice, language="ar")
        assert json.loads(said.read_text())[2:] == [voice, "-l=ar"]

    @pytest.mark.parametrize(
        ("template", "words"),
        [
            ("say {text}", r"\{text\} has no meaning; it may name \{wav\}"),
            ("say -o out.wav", r"names no \{wav\}"),
            ("", r"names no \{wav\}"),
            ("say '{wav}", "No closing quotation"),
        ],
    )
    def test_templates_that_cannot_work(self, template, words):
        with pytest.raises(SourceError, match=words):
            Engine.of(template)

    def test_a_card_names_no_folder_of_this_machine(self):
        engine = Engine.of("/opt/tts/bin/piper --model /home/me/ar.onnx -f {wav}")
        assert (engine.program, engine.shown) == ("piper", "piper --model ar.onnx -f '{wav}'")


class TestVoices:
    def test_are_divided_among_splits(self):
        notes = []
        found = voices_of(["train", "test", "dev", "train"], list("abcdef"), [], 0, notes)
        everyone = [voice for voices in found.values() for voice in voices]
        assert sorted(everyone) == list("abcdef")
        assert len(found["train"]) == 4
        assert notes[0].startswith("voices, divided by hash (seed 0): dev ")

    def test_two_voices_leave_one_unheard_for_test_and_dev(self):
        found = voices_of(["train", "dev", "test"], ["a", "b"], [], 0, [])
        assert found["dev"] == found["test"] != found["train"]

    def test_one_voice_is_said_to_prove_nothing_about_new_ones(self):
        notes = []
        assert voices_of(["train", "test"], ["a"], [], 0, notes) == {"test": ["a"], "train": ["a"]}
        assert "nothing about new voices" in notes[0]

    def test_named_ones_rule(self):
        found = voices_of(["train", "dev", "test"], ["a", "b"], ["c"], 0, [])
        assert found == {"train": ["a", "b"], "dev": ["c"], "test": ["c"]}
        with pytest.raises(SourceError, match="--voices-test b: is among --voices too"):
            voices_of(["train", "test"], ["a", "b"], ["b"], 0, [])

    def test_a_row_keeps_its_voice_whatever_else_there_is(self):
        drawn = [voice_of(str(n), "abc", 0) for n in range(300)]
        assert all(80 < drawn.count(voice) < 120 for voice in "abc")
        assert drawn != [voice_of(str(n), "abc", 1) for n in range(300)]


class TestSpeech:
    def test_the_same_rows_with_recordings(self, tmp_path):
        data = sentences(tmp_path / "data")
        report = build_speech(
            data, tmp_path / "out", speech(PLAIN + " --voice {voice}", voices=tuple("abcd")), licence="CC0-1.0"
        )
        before, after = load(data), load(str(tmp_path / "out"))
        assert [(r.id, r.text, r.label, r.split) for r in after] == [(r.id, r.text, r.label, r.split) for r in before]
        assert all(r.audio and r.duration_s and r.speaker for r in after)
        assert after[3].meta == {
            "n": 3,
            "synthetic": {"engine": Path(sys.executable).name, "voice": after[3].speaker[-1]},
        }
        heard = {s: {r.speaker for r in after if r.split == s} for s in ("train", "test")}
        assert not heard["train"] & heard["test"]
        assert report.validation["errors"] == 0
        card = (tmp_path / "out" / "README.md").read_text()
        assert "licence of the texts: CC0-1.0" in card
        assert "licence of engine and voices: not stated" in card
        assert str(tmp_path) not in (tmp_path / "out" / "manifest.jsonl").read_text()
        assert read_task(tmp_path / "out" / "task.yaml").labels == ["a", "b"]
        assert not list(tmp_path.glob(".*"))

    def test_a_killed_build_goes_on_and_ends_the_same(self, tmp_path):
        data, log = sentences(tmp_path / "data", 8), tmp_path / "log"
        template = f"{PLAIN} --log {log}"
        code = (
            "from attune.building import *\n"
            f"build_speech({data!r}, {str(tmp_path / 'out')!r}, Speech(Engine.of({template!r}), workers=2))"
        )
        building = subprocess.Popen([sys.executable, "-c", code])
        while building.poll() is None and not len(list(tmp_path.glob(".out-building/*.wav"))) >= 3:
            time.sleep(0.1)
        building.send_signal(signal.SIGKILL)
        building.wait()
        assert not (tmp_path / "out").exists()
        ready = len(list(tmp_path.glob(".out-building/*.wav")))
        spoken = len(log.read_text().splitlines())
        report = build_speech(data, tmp_path / "out", speech(template))
        assert 3 <= ready < 24
        assert len(log.read_text().splitlines()) - spoken <= 24 - ready
        (tmp_path / "whole").mkdir()
        assert build_speech(data, tmp_path / "whole" / "out", speech(template)).id == report.id

    def test_failures_name_row_and_reason_and_lose_nothing(self, tmp_path):
        data, log = sentences(tmp_path / "data"), tmp_path / "log"
        failing = f"{TTS} {{wav}} {{text_file}} --log {log} --fail-on 'dev says 2'"
        with pytest.raises(SourceError) as error:
            build_speech(data, tmp_path / "out", speech(failing))
        assert "1 of 12 texts could not be spoken: row dev-2: " in str(error.value)
        assert "ended with 1: cannot say dev says 2" in str(error.value)
        assert "--skip-failed" in str(error.value)
        report = build_speech(data, tmp_path / "out", speech(failing, skip_failed=True))
        assert (report.rows, [str(bad.line) for bad in report.bad]) == (11, ["7"])
        assert len(log.read_text().splitlines()) == 13  # the second time only the one that had failed

    def test_a_wrong_command_ends_the_build_early(self, tmp_path):
        data, log = sentences(tmp_path / "data", 10), tmp_path / "log"
        for more, words in (("--fail-on says", "cannot say"), ("--silent-on says", "wrote nothing to {wav}")):
            with pytest.raises(SourceError, match="4 of 4 texts could not be spoken") as error:
                build_speech(data, tmp_path / "out", speech(f"{PLAIN} --log {log} {more}"))
            assert words in str(error.value)
        assert len(log.read_text().splitlines()) < 2 * 30

    def test_what_hangs_is_killed(self, tmp_path):
        data = sentences(tmp_path / "data", 1, ("train",))
        with pytest.raises(SourceError, match=r"killed after 1 s \(--tts-timeout\)"):
            build_speech(data, tmp_path / "out", speech(f"{PLAIN} --hang-on says", timeout_s=1))

    def test_refusals(self, tmp_path):
        data = sentences(tmp_path / "data", 1)
        for template, voices, words in [
            ("no-such-program {wav}", (), "'no-such-program' cannot be started .* is it installed"),
            ("say {wav} {voice}", (), "no voice is given; name some with --voices"),
            ("say {wav}", ("a",), r"--voices a: --tts has no \{voice\}"),
        ]:
            with pytest.raises(SourceError, match=words):
                build_speech(data, tmp_path / "out", speech(template, voices=voices))
        (tmp_path / "mute").mkdir()
        rows = [Utterance("x", "transcribe", "en", "train", None, audio=str(clip(tmp_path / "x.wav")))]
        write_manifest(rows, tmp_path / "mute" / "manifest.jsonl")
        with pytest.raises(SourceError, match="no row has a text to speak"):
            build_speech(str(tmp_path / "mute"), tmp_path / "out", speech())
        build_speech(data, tmp_path / "out", speech())
        with pytest.raises(SourceError, match=r"holds a data set .* choose another"):
            build_speech(data, tmp_path / "out", speech())


class TestSummaries:
    def test_spoken_documents(self, tmp_path, capsys):
        source = table(tmp_path / "news.csv", 30, url=lambda n: f"u{n}")
        asked = ["build", "summaries", str(source), "--language", "ar", "--tts", f"{PLAIN} --voice {{voice}}"]
        asked += [
            "--voices",
            "a,b,c,d",
            "--licence",
            "CC BY 4.0",
            "--tts-licence",
            "MIT",
            "--out",
            str(tmp_path / "out"),
        ]
        assert main(asked) == 0
        assert "30 of 30 rows from news.csv (summaries (csv))" in capsys.readouterr().out
        mute = ["build", "summaries", str(source), "--language", "ar", "--audio", "file", "--out", str(tmp_path / "m")]
        assert main([*mute, "--voices", "anna", "--skip-failed"]) == 2
        assert "--voices and --skip-failed: says how --tts speaks" in capsys.readouterr().err
        rows, task = load(str(tmp_path / "out")), read_task(tmp_path / "out" / "task.yaml")
        assert (task.name, task.answer, task.metrics) == ("summarise", "text", ["rouge_l", "rouge1", "rouge2"])
        assert {r.split for r in rows} == {"train", "dev", "test"}
        assert [(r.text, r.label) for r in rows] == [(f"long text number {n}", f"short {n}") for n in range(30)]
        assert rows[3].meta["url"] == "u3"
        card = json.loads((tmp_path / "out" / "report.json").read_text())["provenance"]
        assert card["licence of the texts"] == "CC BY 4.0"
        assert card["licence of engine and voices"] == "MIT"
        assert card["command"].endswith("'{wav}' '{text_file}' --voice '{voice}'")

    def test_given_splits_and_columns(self, tmp_path):
        source = tmp_path / "x.jsonl"
        json_lines(source, [
            {"body": f"body {n}", "gist": f"gist {n}", "split": ["train", "validation"][n % 2], "n": n}
            for n in range(6)
        ])  # fmt: skip
        ask = PairOptions("ar", {"text": "body", "summary": "gist"})
        report = build_summaries(source, tmp_path / "out", ask, speech())
        assert report.by_split == {"dev": 3, "train": 3}
        assert report.columns == {"text": "body", "summary": "gist", "split": "split"}

    def test_speech_that_exists_by_column_and_by_id(self, tmp_path):
        for n in range(6):
            clip(tmp_path / "clips" / f"doc-{n}.wav", n)
        source = table(tmp_path / "t.csv", 6, id=lambda n: f"doc-{n}", file=lambda n: f"clips/doc-{n}.wav")
        by_column = build_summaries(source, tmp_path / "a", PairOptions("ar", audio="file"), None)
        ask = PairOptions("ar", audio=str(tmp_path / "clips"))
        by_id = build_summaries(source, tmp_path / "b", ask, None)
        assert by_column.recordings == by_id.recordings == 6
        assert [r.duration_s for r in load(str(tmp_path / "a"))] == [0.3] * 6
        assert all("synthetic" not in r.meta for r in load(str(tmp_path / "b")))

    def test_parquet_of_the_hub_in_an_archive_twice(self, tmp_path):
        """An ended build unpacks it again; what is left out is counted once."""
        rows = [{"id": n, "title": f"t{n}", "text": f"text {n}", "summary": f"s{n}" if n else ""} for n in range(4)]
        (tmp_path / "in").mkdir()
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "train-00000-of-00001.parquet")
        with tarfile.open(tmp_path / "xlsum.tar", "w") as archive:
            archive.add(tmp_path / "in", "in")
        ask = PairOptions("ar")
        with pytest.raises(SourceError, match="1 of 3 texts"):
            build_summaries(tmp_path / "xlsum.tar", tmp_path / "out", ask, speech(f"{PLAIN} --fail-on 3"))
        report = build_summaries(tmp_path / "xlsum.tar", tmp_path / "out", ask, speech())
        assert (report.rows_read, report.by_split) == (4, {"train": 3})
        assert [bad.reason for bad in report.bad] == ["no summary"]
        assert load(str(tmp_path / "out"))[0].meta["title"] == "t1"

    def test_a_text_counts_once_and_where_it_is_held_out(self, tmp_path):
        source = tmp_path / "t.csv"
        source.write_text(
            "text,summary,split\nOne text!,a,train\none text,b,test\n"
            "other,c,train\nOther.,c,train\n,d,train\nx,,train\n"
        )
        report = build_summaries(source, tmp_path / "out", PairOptions("en"), speech())
        assert [(r.text, r.split) for r in load(str(tmp_path / "out"))] == [("one text", "test"), ("other", "train")]
        assert [(bad.line, bad.reason) for bad in report.bad] == [
            (2, "has the text of 't.csv:3', which is in test"), (5, "has the text of 't.csv:4'"),
            (6, "no text"), (7, "no summary"),
        ]  # fmt: skip
        assert report.rows_read == 6

    def test_refusals_are_one_line(self, tmp_path, capsys):
        source = table(tmp_path / "t.csv", 2)
        tts = ["--tts", PLAIN]
        for arguments, words in [
            ([*tts, "--language", "arabic language"], "must be a BCP-47 tag"),
            (tts, "the language is unknown; say it, e.g. --language ar"),
            ([*tts, "--language", "ar", "--text", "documents"], "--text documents: no such column; did you mean"),
            (["--language", "ar"], "either spoken by --tts or have recordings, --audio"),
            (["--language", "ar", "--audio", ""], "either spoken by --tts or have recordings, --audio"),
            (["--language", "ar", "--audio", "sound"], "--audio sound: neither a folder nor a column"),
            (["--language", "ar", "--audio", str(tmp_path)], "found by the rows' ids, which have no column"),
            ([*tts, "--language", "ar", "--text", "summary"], "--summary summary: is the column with the text too"),
            ([*tts, "--language", "ar", "--workers", "0"], "--workers 0: must be 1 or more"),
        ]:
            assert main(["build", "summaries", str(source), "--out", str(tmp_path / "out"), *arguments]) == 2
            said = capsys.readouterr().err
            assert said.startswith("attune build: 1 problem\n")
            assert words in said
            assert len(said.strip().splitlines()) == 2
        assert not list(tmp_path.glob(".*"))
        (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
        with pytest.raises(SourceError, match="no column with the text among: a, b; say --text COLUMN"):
            build_summaries(tmp_path / "bad.csv", tmp_path / "out", PairOptions("ar"), speech())
