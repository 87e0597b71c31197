"""`attune import` of annotated text: slots in all their spellings, BIO, chat files, Hugging Face JSON."""

import csv
import io
import json

import pytest
from sources import Bring, clip, slot

from attune.importing import ImportOptions, SourceError
from attune.importing.slots import parse_cell, parse_inline, parse_tags


@pytest.fixture
def bring(tmp_path):
    return Bring(tmp_path)


class TestSlots:
    def test_inline(self):
        assert parse_inline("wake me at [time : nine am] on [date:friday].") == (
            "wake me at nine am on friday.",
            [slot("time", "nine am"), slot("date", "friday")],
        )
        for bad in ("a [time : nine", "[a : [b : c]]", "[time : ] x"):
            with pytest.raises(ValueError, match=r"bracket|without value"):
                parse_inline(bad)

    @pytest.mark.parametrize(
        ("tags", "slots"),
        [
            ("O B-t I-t O", [slot("t", "b c")]),
            ("B-t B-t I-u O", [slot("t", "a"), slot("t", "b"), slot("u", "c")]),
            ("I-t I-t O I-u", [slot("t", "a b"), slot("u", "d")]),
            ("B-t E-t S-t O", [slot("t", "a b"), slot("t", "c")]),
            ("O O O O", []),
        ],
    )
    def test_tags(self, tags, slots):
        assert parse_tags(["a", "b", "c", "d"], tags.split()) == slots

    def test_tags_that_are_none(self):
        with pytest.raises(ValueError, match="'time' is not"):
            parse_tags(["a"], ["time"])
        with pytest.raises(ValueError, match="2 tokens but 1 tags"):
            parse_tags(["a", "b"], ["O"])

    @pytest.mark.parametrize(
        "cell",
        [
            '{"time": "nine", "date": ["mon", "tue"]}',
            "{'time': 'nine', 'date': ['mon', 'tue']}",
            [slot("time", "nine"), slot("date", "mon"), slot("date", "tue")],
            [["time", "nine"], ["date", "mon"], ["date", "tue"]],
            "time=nine; date=mon; date = tue",
            "O B-time B-date B-date",
            "at [time : nine] [date : mon] [date : tue]",
        ],
    )
    def test_cells(self, cell):
        expected = [slot("time", "nine"), slot("date", "mon"), slot("date", "tue")]
        assert parse_cell(cell, "at nine mon tue") == ("at nine mon tue", expected)

    def test_inline_text_in_a_table(self, bring):
        lines = [f"set alarm for [time : {n % 2} am] by {n},alarm_set" for n in range(20)]
        lines += ["stop,alarm_stop", "bad [time,alarm_set"]
        report, rows, task = bring("t.csv", "utt,intent\n" + "\n".join(lines))
        assert rows[1].text == "set alarm for 1 am by 1"
        assert rows[1].label == {"intent": "alarm_set", "slots": [slot("time", "1 am")]}
        assert (task.answer, task.intents, task.slots) == ("json", ["alarm_set", "alarm_stop"], {"time": None})
        assert [bad.line for bad in report.bad] == [23]
        assert report.suggestions[0].startswith("slot 'time' has 2 values in 20 rows")

    def test_one_column_per_slot(self, bring):
        options = ImportOptions(language="en", columns={"slots": "size,drink", "audio": None})
        _, rows, task = bring("t.csv", "text,intent,size,drink\na b,order,small,tea\nc d,order,,milk\n", options)
        assert [row.label["slots"] for row in rows] == [
            [slot("size", "small"), slot("drink", "tea")], [slot("drink", "milk")]
        ]  # fmt: skip
        assert list(task.slots) == ["size", "drink"]

    def test_massive_has_the_text_twice(self, bring):
        _, rows, _ = bring("t.csv", "id,utt,annot_utt,intent\n1,at nine,at [time : nine],set\n2,stop,stop,halt\n")
        assert [(row.id, row.text, row.label) for row in rows] == [
            ("1", "at nine", {"intent": "set", "slots": [slot("time", "nine")]}),
            ("2", "stop", {"intent": "halt", "slots": []}),
        ]

    def test_bio_as_xsid_publishes_it(self, bring):
        content = (
            "# id = 1\n# text = Stell, bitte\n# intent = AddItem\n# text-en: Put, please\n"
            "1\tStell\tAddItem\tB-verb\n2\t,\tAddItem\tO\n3\tbitte\tAddItem\tO\n\n"
            "# intent: Stop\n1\thalt\tStop\tO\n2\tdie\tStop\tB-x\n3\tUhr\tStop\tI-x\n\n\n"
            "1\tbad\tStop\tQ\n"
        )
        report, rows, task = bring("de.valid.conll", content, ImportOptions(language="de"))
        assert [(row.text, row.label) for row in rows] == [
            ("Stell, bitte", {"intent": "AddItem", "slots": [slot("verb", "Stell")]}),
            ("halt die Uhr", {"intent": "Stop", "slots": [slot("x", "die Uhr")]}),
        ]
        assert rows[0].meta == {"text-en": "Put, please"}
        assert task.intents == ["AddItem", "Stop"]
        assert [(bad.line, "Q" in bad.reason) for bad in report.bad] == [(15, True)]

    def test_bio_in_two_columns_of_a_txt(self, bring):
        _, rows, _ = bring("ner.txt", "EU B-ORG\nrejects O\n\nParis NNP B-LOC\n\nno O\n")
        assert [row.label["slots"] for row in rows] == [[slot("ORG", "EU")], [slot("LOC", "Paris")], []]

    def test_annotated_lines(self, bring):
        _, rows, _ = bring("lines.txt", "play [song : x y]\n\nstop\n")
        assert [(row.text, row.label["slots"]) for row in rows] == [("play x y", [slot("song", "x y")]), ("stop", [])]


class TestChat:
    def rows(self, tmp_path, style):
        out = []
        for n in range(4):
            clip(tmp_path / "in" / f"{n}.wav", n)
            answer = json.dumps({"intent": "i", "slots": {"size": ["small", "large"][n % 2]}})
            if style == "ms-swift":
                out.append({
                    "messages": [
                        {"role": "system", "content": "You help."},
                        {"role": "user", "content": "<audio>\nWhich order?"},
                        {"role": "assistant", "content": answer},
                    ],
                    "audios": [f"{n}.wav"],
                })  # fmt: skip
            elif style == "llama-factory":
                out.append({
                    "conversations": [
                        {"from": "human", "value": "<audio>Which order?"},
                        {"from": "gpt", "value": answer},
                    ],
                    "audios": f"{n}.wav",
                })  # fmt: skip
            else:
                parts = [{"type": "audio", "audio_url": f"{n}.wav"}, {"type": "text", "text": "Which order?"}]
                out.append({
                    "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
                })  # fmt: skip
        return out

    @pytest.mark.parametrize("style", ["ms-swift", "llama-factory", "parts"])
    def test_spoken_orders(self, bring, tmp_path, style):
        talks = self.rows(tmp_path, style)
        if style == "llama-factory":
            report, rows, task = bring("d.json", json.dumps(talks))
        else:
            report, rows, task = bring("d.jsonl", "\n".join(map(json.dumps, talks)))
        assert (report.format, report.bad) == ("chat", [])
        assert task.instruction == {"en": "Which order?"}
        assert [row.label for row in rows][:2] == [
            {"intent": "i", "slots": [slot("size", "small")]}, {"intent": "i", "slots": [slot("size", "large")]}
        ]  # fmt: skip
        assert all(row.audio and row.text is None for row in rows)

    def test_text_rows_lose_the_shared_question(self, bring):
        talks = [
            {"messages": [{"role": "user", "content": f"Emotion?\nI am {n}"}, {"role": "assistant", "content": e}]}
            for n, e in enumerate(["sad", "happy", "sad"])
        ]
        _, rows, task = bring("d.jsonl", "\n".join(map(json.dumps, talks)))
        assert [(row.text, row.label) for row in rows] == [("I am 0", "sad"), ("I am 1", "happy"), ("I am 2", "sad")]
        assert (task.answer, task.instruction) == ("label", {"en": "Emotion?"})

    def test_sentences_as_answers_are_transcripts(self, bring, tmp_path):
        talks = []
        for n in range(3):
            clip(tmp_path / "in" / f"{n}.wav", n)
            turns = [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": f"this is row {n}"}]
            talks.append({"messages": turns, "audios": [f"{n}.wav"]})
        _, rows, task = bring("d.jsonl", "\n".join(map(json.dumps, talks)))
        assert task.answer == "text"
        assert (rows[0].text, rows[0].label) == ("this is row 0", None)

    def test_conversations_that_are_no_utterance(self, bring, tmp_path):
        for n in range(4):
            clip(tmp_path / "in" / f"{n}.wav", n)
        user, answer = {"role": "user", "content": "<audio>Q"}, {"role": "assistant", "content": "a"}
        talks = [
            {"messages": [user, answer], "audios": ["0.wav"]},
            {"messages": [user, answer], "audios": ["1.wav", "2.wav"]},
            {"messages": [user, answer, user, answer], "audios": ["1.wav"]},
            {"messages": [user, answer], "audios": []},
            {"messages": [{"role": "tool", "content": ""}, answer], "audios": ["1.wav"]},
        ]
        report, rows, _ = bring("d.jsonl", "\n".join(map(json.dumps, talks)) + "\n{oops\n")
        assert len(rows) == 1
        assert [bad.line for bad in report.bad] == [2, 3, 4, 5, 6]


class TestJson:
    def test_hugging_face_rows_with_class_names(self, bring, tmp_path):
        clip(tmp_path / "in" / "a.wav")
        info = {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}
        (tmp_path / "in" / "dataset_info.json").write_text(json.dumps(info))
        rows = [
            {"audio": {"path": "a.wav", "bytes": None}, "sentence": "hi", "label": 1},
            {"audio": None, "sentence": "ho", "label": 0},
            {"audio": None, "sentence": "hu", "label": 2},
            {"audio": {"path": None, "bytes": "UklG"}, "sentence": "ha", "label": 0},
        ]
        report, imported, task = bring("t.jsonl", "\n".join(map(json.dumps, rows)))
        found = [(row.text, row.label, bool(row.audio)) for row in imported]
        assert found == [("hi", "yes", True), ("ho", "no", False)]
        assert task.labels == ["no", "yes"]
        assert [(bad.line, bad.reason.split(" ")[0]) for bad in report.bad] == [(3, "label"), (4, "audio:")]

    def test_the_datasets_server_and_columns(self, bring):
        server = {
            "features": [{"name": "intent_class", "type": {"names": ["a", "b"]}}],
            "rows": [{"row_idx": 0, "row": {"transcription": "hi", "intent_class": 1}}],
        }
        _, rows, _ = bring("s.json", json.dumps(server))
        assert [(row.text, row.label) for row in rows] == [("hi", "b")]
        _, rows, _ = bring("c.json", json.dumps({"text": ["x", "y"], "label": [3, 4]}), out="c")
        assert [(row.text, row.label) for row in rows] == [("x", "3"), ("y", "4")]

    def test_several_labels(self, bring):
        content = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": ["y"]}]
        _, rows, task = bring("t.json", json.dumps(content))
        assert (task.answer, task.labels) == ("label_set", ["x", "y"])
        assert rows[0].label == ["x", "y"]

    def test_choices_of_each_row(self, bring):
        rows = [
            ["text", "choices", "label"], ["one", '["a, b", "c"]', "c"], ["two", '["x", 2, "z"]', "2"],
            ["three", '["x", "y"]', "z"], ["four", "x or y", "x"], ["five", "", "x"],
        ]  # fmt: skip
        table = io.StringIO()
        csv.writer(table).writerows(rows)
        report, found, task = bring("t.csv", table.getvalue())
        assert (task.name, task.answer, task.menu, task.labels) == ("multiple_choice", "choice", True, None)
        assert [(row.label, row.choices) for row in found] == [("c", ("a, b", "c")), ("2", ("x", "2", "z"))]
        assert [(bad.line, bad.reason.partition(";")[0]) for bad in sorted(report.bad, key=lambda bad: bad.line)] == [
            (4, "choices: the label 'z' is none of them"),
            (5, "choices 'x or y': must be a list of answers, in a table as JSON: [\"one\", \"other\"]"),
            (6, "choices: must be a list of two answers or more"),
        ]
        listed = [{"text": t, "choices": ["x", f"y{t}"], "label": "x"} for t in "ab"]
        _, found, _ = bring("l.json", json.dumps(listed), out="l")
        assert found[1].choices == ("x", "yb")
        _, found, task = bring("l.json", None, ImportOptions(language="en", columns={"choices": None}), out="n")
        assert (task.answer, found[0].choices, found[0].meta) == ("label", None, {"choices": ["x", "ya"]})
        with pytest.raises(SourceError, match="has choices, which answer label does not take"):
            bring("l.json", None, ImportOptions(language="en", answer="label"), out="m")

    def test_our_own_manifest(self, bring):
        label = {"intent": "i", "slots": [slot("t", "v")]}
        row = {"id": "a", "task": "x", "language": "de", "split": "dev", "text": "hi", "label": label}
        row |= {"audio": None, "meta": {"age": 9}}
        _, rows, _ = bring("m.jsonl", json.dumps(row), ImportOptions())
        assert (rows[0].id, rows[0].split, rows[0].language, rows[0].label) == ("a", "dev", "de", label)
        assert (rows[0].task, rows[0].meta) == ("x", {"age": 9})

    def test_no_json(self, bring):
        with pytest.raises(SourceError, match=r"t\.json:2: not JSON"):
            bring("t.json", '[{"a": 1},\n{]')
        with pytest.raises(SourceError, match="empty"):
            bring("t.json", " ")
        with pytest.raises(SourceError, match="list of rows"):
            bring("t.json", '{"version": 1}')
