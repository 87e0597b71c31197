"""`attune import` of corpora for understanding, from small folders in their published layouts."""

import json
from functools import partial

import pytest
from sources import bring_kind, clip, json_lines, shard, slot, sound

from attune.importing import SourceError
from trainer.spec import builtin_tasks


@pytest.fixture
def bring(tmp_path):
    """Import `in` as a kind: (report, rows by id, task)."""
    return partial(bring_kind, tmp_path)


def sentence(number, words, scenario, action, intent, entities, takes):
    return {
        "slurp_id": number, "sentence": " ".join(words), "sentence_annotation": "", "intent": intent, "action": action,
        "tokens": [{"surface": w, "id": n, "lemma": w, "pos": "NN"} for n, w in enumerate(words)],
        "scenario": scenario, "entities": entities,
        "recordings": [{"file": f, "wer": 0.0, "ent_wer": 0.0, "status": "correct"} for f in takes],
    }  # fmt: skip


class TestSlurp:
    def write(self, tmp_path, audio=True):
        folder = tmp_path / "in" / "dataset" / "slurp"
        wake = ["wake", "me", "at", "Eight", "am"]
        takes = ["audio-1.flac", "audio-1-headset.flac", "audio-gone.flac"]
        span = [{"span": [3, 4], "type": "time"}]
        train = [
            sentence(1, wake, "alarm", "set", "alarm_set", span, takes),
            sentence(
                2, ["play", "jazz"], "play", "music", "play_music", [{"span": [1], "type": "genre"}], ["audio-2.flac"]
            ),
        ]
        json_lines(folder / "train.jsonl", train)
        # the intent column says otherwise than scenario and action here, as in 37 sentences of the test set
        test = sentence(3, ["no", "jazz"], "music", "dislikeness", "music_likeness", [], ["audio-3.flac"])
        json_lines(folder / "test.jsonl", [test, {"slurp_id": 4, "sentence": "broken"}])
        json_lines(folder / "devel.jsonl", [])
        users = {"1": ["audio-1.flac", "audio-1-headset.flac"], "2": ["audio-2.flac"]}
        metadata = {
            key: {"recordings": {name: {"usrid": f"FO-{key}", "status": "correct"} for name in names}}
            for key, names in users.items()
        }
        (folder / "metadata.json").write_text(json.dumps(metadata))
        if audio:
            for n, name in enumerate(["audio-1", "audio-1-headset", "audio-2", "audio-3"]):
                clip(tmp_path / "in" / "audio" / "slurp_real" / f"{name}.flac", n)

    def test_a_row_per_recording_with_its_user_and_microphone(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, task = bring("slurp")
        assert sorted(rows) == ["audio-1", "audio-1-headset", "audio-2", "audio-3"]
        near = rows["audio-1-headset"]
        assert near.label == {"intent": "alarm_set", "slots": [slot("time", "eight am")]}
        assert (near.text, near.speaker, near.language) == ("wake me at Eight am", "FO-1", "en")
        assert near.meta == {"slurp_id": 1, "headset": True, "wer": 0.0}
        assert rows["audio-1"].meta["headset"] is False
        assert rows["audio-3"].speaker is None
        assert report.by_split == {"test": 1, "train": 3}
        assert near.duration_s == pytest.approx(0.3)
        assert task.name == "intent_slots"
        assert list(task.slots) == ["time", "genre"]

    def test_the_intent_is_scenario_and_action(self, tmp_path, bring):
        self.write(tmp_path)
        _, rows, task = bring("slurp")
        assert rows["audio-3"].label["intent"] == "music_dislikeness"
        assert task.intents == ["alarm_set", "music_dislikeness", "play_music"]

    def test_what_is_left_out_is_named_by_file_and_line(self, tmp_path, bring):
        self.write(tmp_path)
        report, _, _ = bring("slurp")
        said = [str(row) for row in report.bad]
        assert len(said) == 2
        assert said[0].startswith("dataset/slurp/test.jsonl:2: field 'scenario' is missing") or "tokens" in said[0]
        assert said[1].startswith("dataset/slurp/train.jsonl:1: audio 'audio-gone.flac' is missing")
        assert report.rows_read == 6

    def test_without_recordings_the_sentences_are_text(self, tmp_path, bring):
        self.write(tmp_path, audio=False)
        report, rows, _ = bring("slurp")
        assert sorted(rows) == ["slurp-1", "slurp-2", "slurp-3"]
        assert report.recordings == 0
        assert any("sentences alone" in note for note in report.notes)

    def test_another_folder_is_told_what_was_expected(self, tmp_path, bring):
        (tmp_path / "in").mkdir()
        with pytest.raises(SourceError, match=r"slurp: nothing of it in .*; expected train\.jsonl"):
            bring("slurp")


def massive(number, locale, partition, intent, utt, annotated):
    return {
        "id": str(number), "locale": locale, "partition": partition, "scenario": intent.split("_")[0], "intent": intent,
        "utt": utt, "annot_utt": annotated, "worker_id": "1",
    }  # fmt: skip


class TestMassive:
    def write(self, tmp_path):
        rows = [
            massive(0, "de-DE", "test", "alarm_set", "weck mich um fünf, bitte", "weck mich um [time : fünf], bitte"),
            massive(1, "de-DE", "train", "iot_hue_lightoff", "licht aus", "licht aus"),
            {"id": "2", "locale": "de-DE", "partition": "heldout", "utt": "was ist das"},
        ]
        json_lines(tmp_path / "in" / "1.0" / "data" / "de-DE.jsonl", rows)
        french = [massive(0, "fr-FR", "train", "alarm_set", "réveille-moi", "réveille-moi")]
        json_lines(tmp_path / "in" / "1.0" / "data" / "fr-FR.jsonl", french)

    def test_every_locale(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, task = bring("massive")
        assert sorted(rows) == ["massive-de-DE-0", "massive-de-DE-1", "massive-fr-FR-0"]
        row = rows["massive-de-DE-0"]
        assert (row.text, row.split, row.language) == ("weck mich um fünf, bitte", "test", "de-DE")
        assert row.label == {"intent": "alarm_set", "slots": [slot("time", "fünf")]}
        assert report.bad[0].line == 3
        assert report.bad[0].reason == "no intent: a row of the unlabelled evaluation set"
        assert task.intents == ["alarm_set", "iot_hue_lightoff"]

    def test_one_locale(self, tmp_path, bring):
        self.write(tmp_path)
        _, rows, _ = bring("massive", language="fr-FR")
        assert list(rows) == ["massive-fr-FR-0"]
        with pytest.raises(SourceError, match="no files for --language it-IT; there are: de-DE, fr-FR"):
            bring("massive", out="o2", language="it-IT")


class TestSpeechMassive:
    def row(self, tmp_path, number, locale, seed, audio=True):
        return {
            "id": str(number), "locale": locale, "partition": "train", "scenario": 16, "scenario_str": "alarm",
            "intent_idx": 48, "intent_str": "alarm_set", "utt": "réveille-moi à neuf heures",
            "annot_utt": "réveille-moi à [time : neuf heures]", "tokens": ["réveille-moi", "à", "neuf", "heures"],
            "labels": ["Other", "Other", "time", "time"],
            "audio": sound(tmp_path, seed, f"{seed}.wav") if audio else None, "path": f"train/{seed}.wav",
            "is_transcript_reported": False, "is_validated": True, "speaker_id": f"s{seed}", "speaker_sex": "Female",
            "speaker_age": "40",
        }  # fmt: skip

    def test_few_shot_rows_are_part_of_train(self, tmp_path, bring):
        one, two = self.row(tmp_path, 1, "fr-FR", 1), self.row(tmp_path, 2, "fr-FR", 2)
        shard(tmp_path / "in" / "fr-FR" / "train-00000-of-00001.parquet", [one, two])
        shard(tmp_path / "in" / "fr-FR" / "train_115-00000-of-00001.parquet", [one])
        shard(tmp_path / "in" / "fr-FR" / "validation-00000-of-00001.parquet", [self.row(tmp_path, 3, "fr-FR", 3)])
        shard(tmp_path / "in" / "es-ES" / "train_115-00000-of-00001.parquet", [self.row(tmp_path, 1, "es-ES", 4)])
        shard(tmp_path / "in" / "all" / "train-00000-of-00001.parquet", [one, two])
        report, rows, _ = bring("speech-massive")
        assert {id: row.split for id, row in rows.items()} == {
            "speech-massive-fr-FR-1": "train", "speech-massive-fr-FR-2": "train", "speech-massive-fr-FR-3": "dev",
            "speech-massive-es-ES-1": "train",
        }  # fmt: skip
        assert {id for id, row in rows.items() if row.meta.get("few_shot")} == {
            "speech-massive-fr-FR-1", "speech-massive-es-ES-1"
        }  # fmt: skip
        row = rows["speech-massive-fr-FR-1"]
        assert row.label == {"intent": "alarm_set", "slots": [slot("time", "neuf heures")]}
        assert (row.speaker, row.language) == ("s1", "fr-FR")
        assert [bad.reason.split(":")[0] for bad in report.bad] == ["of train_115"]
        assert report.recordings == 4

    def test_a_row_without_recording_is_left_out(self, tmp_path, bring):
        rows = [self.row(tmp_path, 1, "fr-FR", 1), self.row(tmp_path, 2, "fr-FR", 2, audio=False)]
        shard(tmp_path / "in" / "fr-FR" / "test-00000-of-00001.parquet", rows)
        report, rows, _ = bring("speech-massive", source="in/fr-FR")
        assert len(rows) == 1
        assert [str(bad) for bad in report.bad] == ["test-00000-of-00001.parquet:2: the row holds no recording"]


class TestItalic:
    def write(self, tmp_path):
        for n in range(3):
            clip(tmp_path / "in" / "recordings" / f"{n}.wav", n)
        rows = [
            {"id": n, "age": 30, "gender": "female", "region": "piemonte", "speaker_id": n, "lisp": "",
             "scenario": "alarm", "field": "set", "intent": "alarm_set", "utt": f"svegliami alle {n}"}
            for n in range(3)
        ]  # fmt: skip
        json_lines(tmp_path / "in" / "massive_train.json", rows[:2])
        json_lines(tmp_path / "in" / "massive_test.json", rows[2:])
        json_lines(tmp_path / "in" / "hard_speaker_train.json", rows)

    def test_intents_alone(self, tmp_path, bring):
        self.write(tmp_path)
        report, rows, task = bring("italic")
        assert [(id, row.split) for id, row in sorted(rows.items())] == [
            ("italic-0", "train"), ("italic-1", "train"), ("italic-2", "test")
        ]  # fmt: skip
        assert (rows["italic-0"].label, rows["italic-0"].speaker) == ("alarm_set", "0")
        assert rows["italic-0"].meta == {"age": 30, "gender": "female", "region": "piemonte"}
        assert (task.answer, task.labels) == ("label", ["alarm_set"])
        assert any("it-IT.jsonl" in note for note in report.notes)

    def test_slots_from_massive(self, tmp_path, bring):
        self.write(tmp_path)
        said = "svegliami alle"
        text = [massive(n, "it-IT", "train", "alarm_set", f"{said} {n}", f"{said} [time : {n}]") for n in (0, 2)]
        json_lines(tmp_path / "in" / "it-IT.jsonl", text)
        report, rows, task = bring("italic")
        assert rows["italic-2"].label == {"intent": "alarm_set", "slots": [slot("time", "2")]}
        assert len(rows) == 2
        assert "not in it-IT.jsonl" in report.bad[0].reason
        assert task.answer == "json"

    def test_configurations(self, tmp_path, bring):
        self.write(tmp_path)
        report, _, _ = bring("italic", config="hard_speaker")
        assert report.by_split == {"train": 3}
        with pytest.raises(SourceError, match="--config 'easy': must be one of massive"):
            bring("italic", out="o2", config="easy")


class TestSlueVoxCeleb:
    def row(self, id, sentiment, start=0.1, end=0.3, **more):
        return {"index": 0, "id": id, "normalized_text": "so good", "sentiment": sentiment, "start_second": start,
                "end_second": end, **more}  # fmt: skip

    def test_mixed_and_disagreement_are_counted_out(self, tmp_path, bring):
        given = ["Positive", "<mixed>", "Disagreement", "Neutral", "Disagreement"]
        rows = [
            self.row(f"id1000{n}_abc_00001", said, audio=sound(tmp_path, n), speaker_id=f"id1000{n}", local_path="x")
            for n, said in enumerate(given)
        ]
        shard(tmp_path / "in" / "voxceleb" / "train-00000-of-00001.parquet", rows)
        shard(tmp_path / "in" / "voxpopuli" / "train-00000-of-00001.parquet", [{"id": "another configuration"}])
        report, rows, task = bring("slue-voxceleb")
        assert [row.label for row in rows.values()] == ["Positive", "Neutral"]
        assert report.left_out == {"sentiment Disagreement is no part of the task": 2}
        assert len(report.bad) == 3
        assert any("2 × sentiment Disagreement" in line for line in report.lines())
        assert task == builtin_tasks()["slue_sentiment"]
        assert task.labels == ["Negative", "Neutral", "Positive"]
        assert task.metrics[0] == "macro_f1"
        row = next(iter(rows.values()))
        assert (row.offset_s, row.duration_s) == (0.1, 0.2)

    def test_a_recording_that_is_cut_already_is_used_whole(self, tmp_path, bring):
        rows = [self.row("id10000_a_1", "Negative", 5.1, 5.4, audio=sound(tmp_path, 1), speaker_id="id10000")]
        shard(tmp_path / "in" / "voxceleb" / "test-00000-of-00001.parquet", rows)
        row = bring("slue-voxceleb")[1]["id10000_a_1"]
        assert (row.offset_s, row.duration_s) == (0.0, pytest.approx(0.3))

    def test_the_toolkit_s_folder(self, tmp_path, bring):
        for split in ("fine-tune", "dev"):
            clip(tmp_path / "in" / f"{split}_raw" / f"id1_{split}.flac", 1 if split == "dev" else 2, seconds=2)
            columns = ["id", "normalized_text", "sentiment", "start_second", "end_second"]
            cells = [f"id1_{split}", 'he said "no', "Negative", "0.0", "0.2"]
            table = "\t".join(columns) + "\n" + "\t".join(cells) + "\n"
            (tmp_path / "in" / f"slue-voxceleb_{split}.tsv").write_text(table)
        (tmp_path / "in" / "slue-voxceleb_test_blind.tsv").write_text("id\tnormalized_text\nid2_x\thello\n")
        report, rows, _ = bring("slue-voxceleb")
        assert {row.split for row in rows.values()} == {"train", "dev"}
        assert (rows["id1_dev"].text, rows["id1_dev"].speaker) == ('he said "no', "id1")
        assert rows["id1_dev"].duration_s == 0.2  # from the start of a recording of 2 s
        assert "blind" in report.bad[0].reason

    def test_transcribing_it_instead(self, tmp_path, bring):
        rows = [self.row("id10000_a_1", "Negative", audio=sound(tmp_path, 1), speaker_id="id10000")]
        shard(tmp_path / "in" / "voxceleb" / "test-00000-of-00001.parquet", rows)
        _, rows, task = bring("slue-voxceleb", answer="text", task="asr")
        assert (task.name, task.answer, rows["id10000_a_1"].label) == ("asr", "text", None)
        _, rows, task = bring("slue-voxceleb", out="o2", instruction="Is it good?")
        assert (task.instruction["en"], rows["id10000_a_1"].label) == ("Is it good?", "Negative")


class TestSlueHvb:
    def test_dialog_acts_are_a_set(self, tmp_path, bring):
        rows = [
            {"issue_id": "0002f", "audio": sound(tmp_path, n), "speaker_id": "46", "text": "how can i help",
             "utt_index": n, "channel": 2, "role": "agent", "start_ms": 100 * n, "duration_ms": 300,
             "intent": "replace card", "dialog_acts": acts}
            for n, acts in enumerate([["question_general"], ["statement_open", "self"], [], ["nonsense"]])
        ]  # fmt: skip
        shard(tmp_path / "in" / "hvb" / "validation-00000-of-00001.parquet", rows)
        report, rows, task = bring("slue-hvb")
        assert [row.label for row in rows.values()] == [["question_general"], ["statement_open", "self"]]
        assert task == builtin_tasks()["slue_dialog_acts"]
        assert len(task.labels) == 18
        assert list(rows) == ["0002f_0_300", "0002f_100_400"]
        assert rows["0002f_0_300"].meta == {"issue_id": "0002f", "role": "agent", "intent": "replace card"}
        assert [bad.reason.split(":")[0] for bad in report.bad] == ["no dialog act", "label_outside"]


class TestSlueVoxPopuli:
    text = "in article twenty one the eu said today in the scala"

    def spans(self):
        return [["DATE", self.text.index("today"), 5], ["LAW", 3, 18], ["FAC", self.text.index("scala"), 5]]

    def check(self, rows, task):
        (row,) = rows.values()
        assert row.label == {"intent": None, "slots": [slot("LAW", "article twenty one"), slot("WHEN", "today")]}
        assert row.speaker is None
        assert list(task.slots) == ["LAW", "NORP", "ORG", "PERSON", "PLACE", "QUANT", "WHEN"]

    def test_the_hub_s_parquet(self, tmp_path, bring):
        kinds, starts, lengths = zip(*self.spans(), strict=True)
        ner = {"type": list(kinds), "start": list(starts), "length": list(lengths)}
        row = {"id": "2013_7", "audio": sound(tmp_path, 1), "speaker_id": "None", "normalized_text": self.text,
               "raw_text": "", "raw_ner": None, "normalized_ner": ner}  # fmt: skip
        shard(tmp_path / "in" / "voxpopuli" / "test-00000-of-00001.parquet", [row])
        self.check(*bring("slue-voxpopuli")[1:])

    def test_the_types_alone(self, tmp_path, bring):
        """What of a sentence is none of the seven counts as nothing, and a type that stands twice counts once."""
        spans = [self.spans(), [*self.spans(), ["TIME", 0, 2]], [["FAC", 3, 7]], []]
        rows = [
            {"id": str(n), "audio": sound(tmp_path, n), "speaker_id": "None", "normalized_text": self.text,
             "normalized_ner": dict(zip(("type", "start", "length"), map(list, zip(*s, strict=True)), strict=True))
             if s else {"type": [], "start": [], "length": []}}
            for n, s in enumerate(spans)
        ]  # fmt: skip
        shard(tmp_path / "in" / "voxpopuli" / "test-00000-of-00001.parquet", rows)
        _, rows, task = bring("slue-voxpopuli", task="slue_entities")
        assert [row.label for row in rows.values()] == [["law", "when"], ["law", "when"], ["none"], ["none"]]
        assert task == builtin_tasks()["slue_entities"]
        assert {row.task for row in rows.values()} == {"slue_entities"}

    def test_the_toolkit_s_folder(self, tmp_path, bring):
        clip(tmp_path / "in" / "fine-tune" / "2013_7.ogg", 1)
        header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\traw_ner\tnormalized_ner\n"
        line = f"2013_7\t\t{self.text}\tNone\tfine-tune\t[]\t{self.spans()}\n"
        far = "2013_8\t\tshort\tNone\tfine-tune\t[]\t[['LAW', 3, 90]]\n"
        (tmp_path / "in" / "slue-voxpopuli_fine-tune.tsv").write_text(header + line + far)
        report, rows, task = bring("slue-voxpopuli")
        self.check(rows, task)
        assert str(report.bad[0]).startswith("slue-voxpopuli_fine-tune.tsv:3: entity at '3'")
