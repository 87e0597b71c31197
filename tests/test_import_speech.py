"""`attune import` of corpora for transcription, translation, questions and summaries, in their published layouts."""

import json
from functools import partial

import numpy as np
import pytest
import soundfile
import yaml
from sources import bring_kind, clip, cut, json_lines, shard, sound

from attune.importing import SourceError
from attune.importing.corpora import mega_ssum, must_c, slue, spoken_squad
from trainer.metrics import METRICS


@pytest.fixture
def bring(tmp_path):
    """Import `in` as a kind: (report, rows by id, task)."""
    return partial(bring_kind, tmp_path)


class TestMustC:
    english = ("Hello.", "Thank you.", "So,\x85 yes.")

    def write(self, tmp_path, pair="en-de", split="train", english=english, german=None):
        data = tmp_path / "in" / pair / "data" / split
        clip(data / "wav" / "ted_1.wav", 1, seconds=3)
        segments = [
            {"duration": 0.5, "offset": 0.25, "rW": 1, "speaker_id": "spk.1", "wav": "ted_1.wav"},
            {"duration": 1.0, "offset": 0.75, "rW": 2, "speaker_id": "spk.1", "wav": "ted_1.wav"},
            {"duration": 1.2, "offset": 1.75, "rW": 2, "speaker_id": "spk.1", "wav": "ted_1.wav"},
        ]
        text = data / "txt"
        text.mkdir()
        lines = [yaml.safe_dump([segment], default_flow_style=True)[1:-2] for segment in segments]
        (text / f"{split}.yaml").write_text("".join(f"- {line}\n" for line in lines))
        (text / f"{split}.en").write_text("".join(f"{line}\n" for line in english), encoding="utf-8")
        german = german or ["Hallo.", "", "Ja."]
        (text / f"{split}.{pair[3:]}").write_text("".join(f"{line}\n" for line in german), encoding="utf-8")

    def test_segments_stay_segments_of_the_talk(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, task = bring("must-c")
        assert list(rows) == ["ted_1_0", "ted_1_1", "ted_1_2"]
        row = rows["ted_1_1"]
        assert (row.offset_s, row.duration_s, row.speaker, row.split) == (0.75, 1.0, "spk.1", "train")
        assert (row.text, row.label, task.name) == ("Thank you.", None, "transcribe")
        assert len({row.audio for row in rows.values()}) == 1
        assert len(list((tmp_path / "out" / "audio").iterdir())) == 1
        assert rows["ted_1_2"].text == "So, yes."  # a next-line character ends no line
        assert any("--target de" in note for note in report.notes)

    def test_translation(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, task = bring("must-c", target="de")
        assert {id: row.label for id, row in rows.items()} == {"ted_1_0": "Hallo.", "ted_1_2": "Ja."}
        assert (task.name, task.answer) == ("translate-de", "text")
        assert "German" in task.instruction["en"]
        assert [str(bad) for bad in report.bad] == ["en-de/data/train/txt/train.yaml:2: no text in de"]
        with pytest.raises(SourceError, match="no translations into --target fr; there are: de"):
            bring("must-c", out="o2", target="fr")

    def test_two_pairs_say_the_same_in_english(self, tmp_path, bring):
        self.write(tmp_path)
        self.write(tmp_path, "en-fr", german=["Bonjour.", "Merci.", "Oui."])
        with pytest.raises(SourceError, match="pairs with de, fr, whose talks are the same"):
            bring("must-c")
        assert len(bring("must-c", target="fr")[1]) == 3

    def test_texts_of_another_length_are_refused(self, tmp_path, bring):
        self.write(tmp_path, split="tst-COMMON", english=["one line"])
        with pytest.raises(SourceError, match=r"tst-COMMON\.en: 1 lines for 3 segments of tst-COMMON\.yaml"):
            bring("must-c")


class TestSpokenSquad:
    def write(self, tmp_path):
        def qa(id, question, *answers):
            found = [{"answer_start": 0, "text": answer} for answer in answers]
            return {"answers": found, "question": question, "id": id}

        qas = [qa("q1", "Who won?", "denver", "denver broncos"), qa("q2", "Where?", "santa clara")]
        said = "denver broncos won in santa clara"
        paragraphs = [{"context": said, "qas": qas}, {"context": "nothing asked", "qas": []}]
        lost = [{"context": "not there", "qas": [qa("q3", "?", "x")]}]
        data = {"data": [{"title": "A", "paragraphs": paragraphs}, {"title": "B", "paragraphs": lost}]}
        folder = tmp_path / "in"
        folder.mkdir()
        (folder / "spoken_test-v1.1.json").write_text(json.dumps(data))
        (folder / "spoken_test-v1.1_WER44.json").write_text("{}")
        for n, name in enumerate(["0_0_0", "0_0_1", "0_1_0", "1_0_1"]):
            clip(folder / "Spoken-SQuAD_audio" / "dev_wav" / f"{name}.wav", n, seconds=0.2 + 0.1 * n)

    def test_a_question_per_row_and_its_passage_in_one_piece(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, task = bring("spoken-squad")
        assert list(rows) == ["q1", "q2"]
        row = rows["q1"]
        assert (row.question, row.label, row.split) == ("Who won?", ["denver", "denver broncos"], "test")
        assert rows["q2"].label == "santa clara"
        assert row.text == "denver broncos won in santa clara"
        assert row.meta == {"passage": "0_0"}
        assert rows["q2"].audio == row.audio
        first, second = (soundfile.read(tmp_path / "in/Spoken-SQuAD_audio/dev_wav" / f"0_0_{n}.wav")[0] for n in (0, 1))
        assert np.array_equal(soundfile.read(row.audio)[0], np.concatenate([first, second]))
        assert (task.name, task.answer) == ("question_answering", "text")
        assert str(report.bad[0]) == (
            "spoken_test-v1.1.json:3: recordings of passage '1_0' are missing or not numbered from 0; unpack them"
        )
        assert any("WER44" in note for note in report.notes)
        stored = (tmp_path / "out" / "report.json").read_text()
        assert "same_audio_twice" not in stored  # two questions about one passage are meant
        assert str(tmp_path) not in stored


class TestMegaSsum:
    def test_the_hub_s_parquet(self, tmp_path, bring):
        def row(n, summary="short", other=None):
            return {"id": f"{n:07d}", "audio": sound(tmp_path, n), "transcription": f"a long story {n}",
                    "summary": summary, "summary1": other, "summary2": None, "summary3": None}  # fmt: skip

        shard(tmp_path / "in" / "data" / "core-00000-of-00001.parquet", [row(1), row(2, summary="")])
        shard(tmp_path / "in" / "data" / "duc2003-00000-of-00001.parquet", [row(1, other="another")])
        report, rows, task = bring("mega-ssum", language="en")
        assert {id: row.split for id, row in rows.items()} == {"train-0000001": "train", "duc2003-0000001": "duc2003"}
        assert (rows["train-0000001"].text, rows["train-0000001"].label) == ("a long story 1", "short")
        assert rows["duc2003-0000001"].meta == {"references": ["another"]}
        assert (task.answer, [bad.reason for bad in report.bad]) == ("text", ["no summary"])

    def test_documents_without_recordings(self, tmp_path, bring):
        json_lines(tmp_path / "in" / "test.jsonl", [{"id": 1, "transcription": "قصة طويلة", "summary": "قصة"}])
        report, rows, _ = bring("mega-ssum", language="ar")
        assert (rows["test-1"].audio, rows["test-1"].language, rows["test-1"].label) == (None, "ar", "قصة")
        assert report.recordings == 0
        with pytest.raises(SourceError, match="the language is unknown"):
            bring("mega-ssum", out="o2")


class TestLibriSpeech:
    def test_linked_folders_are_followed_once(self, tmp_path, bring):
        folder = tmp_path / "disk" / "84" / "1"
        clip(folder / "84-1-0000.flac", 1)
        (folder / "84-1.trans.txt").write_text("84-1-0000 HELLO\n")
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "dev-clean").symlink_to(tmp_path / "disk")
        (tmp_path / "disk" / "loop").symlink_to(tmp_path / "in")
        report, rows, _ = bring("librispeech")
        assert (list(rows), rows["84-1-0000"].split, report.bad) == (["84-1-0000"], "dev-clean", [])

    def test_subsets(self, tmp_path, bring):
        for subset, reader in (("train-clean-100", 103), ("test-other", 367)):
            folder = tmp_path / "in" / "LibriSpeech" / subset / str(reader) / "1240"
            for n in range(2):
                clip(folder / f"{reader}-1240-000{n}.flac", reader + n)
            lines = [f"{reader}-1240-000{n} CHAPTER {n}" for n in range(2)]
            lines += [f"{reader}-1240-0002 GONE", f"{reader}-1240-0003"]
            (folder / f"{reader}-1240.trans.txt").write_text("\n".join(lines) + "\n")
        speakers = "; comment\n103  | F | train-clean-100  | 25.14 | Karen\n"
        (tmp_path / "in" / "LibriSpeech" / "SPEAKERS.TXT").write_text(speakers)
        report, rows, task = bring("librispeech")
        assert {row.split for row in rows.values()} == {"train", "test-other"}
        row = rows["103-1240-0001"]
        assert (row.text, row.speaker, row.meta) == ("CHAPTER 1", "103", {"subset": "train-clean-100", "sex": "F"})
        assert task.name == "transcribe"
        assert len(report.bad) == 4
        assert str(report.bad[0]).startswith("LibriSpeech/test-other/367/1240/367-1240.trans.txt:3: audio")


class TestLibriheavy:
    def test_the_book_s_text_and_the_hard_coded_folder(self, tmp_path, bring):
        clip(tmp_path / "in" / "librilight" / "small" / "100" / "sea" / "01.flac", 1, seconds=2)
        supervision = {
            "id": "small/100/sea/01_0", "recording_id": "r", "start": 0, "duration": 0.8, "channel": 0,
            "language": "English", "speaker": "100",
            "custom": {"texts": ["The girl was thoughtful.", "THE GIRL WAS"], "pre_texts": ["x"], "begin_byte": 1},
        }  # fmt: skip
        source = "download/librilight/small/100/sea/01.flac"
        cuts = [cut("small/100/sea/01_0", source, 0.5, 0.8, [supervision])]
        json_lines(tmp_path / "in" / "libriheavy_cuts_small.jsonl", cuts)
        json_lines(tmp_path / "in" / "libriheavy_cuts_test_clean.jsonl", [cut("t", source, 1.3, 0.5, [supervision])])
        _, rows, _ = bring("libriheavy")
        row = rows["small/100/sea/01_0"]
        assert (row.text, row.language, row.speaker) == ("The girl was thoughtful.", "en", "100")
        assert (row.offset_s, row.duration_s, row.split, row.meta) == (0.5, 0.8, "train", None)
        assert rows["t"].split == "test_clean"


class TestCommonVoice:
    columns = ("client_id", "path", "sentence_id", "sentence", "up_votes", "down_votes", "age", "accents", "locale")

    def table(self, path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["\t".join(self.columns)]
        lines += ["\t".join([who, f"cv_{n}.mp3", "s", text, "2", "0", "", "", "it"]) for who, n, text in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def write(self, tmp_path, *names):
        for n in range(6):
            clip(tmp_path / "in" / "it" / "clips" / f"cv_{n}.mp3", n)
        rows = {"train": [("a", 0, 'dice "sì')], "dev": [("b", 1, "due")], "test": [("c", 2, "tre")]}
        everything = [row for split in rows.values() for row in split]
        rows["validated"] = [*everything, ("d", 3, "quattro"), ("c", 4, "cinque"), ("e", 9, "nove")]
        for name in names or rows:
            self.table(tmp_path / "in" / "it" / f"{name}.tsv", rows[name])

    def test_the_published_splits(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, task = bring("common-voice")
        assert {id: row.split for id, row in rows.items()} == {"cv_0": "train", "cv_1": "dev", "cv_2": "test"}
        assert (rows["cv_0"].text, rows["cv_0"].speaker, rows["cv_0"].language) == ('dice "sì', "a", "it")
        assert rows["cv_0"].meta == {"up_votes": "2", "down_votes": "0"}
        assert any("--config validated" in note for note in report.notes)
        assert task.name == "transcribe"

    def test_what_else_was_validated(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, _ = bring("common-voice", config="validated")
        assert rows["cv_3"].split == "train"
        assert "cv_4" not in rows
        assert [bad.reason.split(";")[0] for bad in report.bad] == [
            "its volunteer is in dev or test", "audio 'cv_9.mp3' is missing"
        ]  # fmt: skip

    def test_a_language_without_splits_is_split_by_volunteer(self, tmp_path, bring):
        self.write(tmp_path, "validated")
        _, rows, _ = bring("common-voice")
        assert rows["cv_2"].split == rows["cv_4"].split  # one volunteer
        assert {row.split for row in rows.values()} == {"train", "dev", "test"}


def test_metrics_that_corpora_name_are_there_and_fit_their_answers():
    tasks = [slue.SENTIMENT, slue.DIALOG_ACT, slue.NAMED_ENTITIES, mega_ssum.TASK, spoken_squad.TASK]
    tasks += [must_c.task(target) for target in (None, "de", "zh", "ja")]
    wrong = [(t.name, name) for t in tasks for name in t.metrics if t.answer not in METRICS[name].answers]
    assert wrong == []
    assert len({task.name for task in tasks}) == len(tasks)
