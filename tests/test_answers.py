"""Answer strings: one canonical form per label, strict reading, and the way back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.answers import instruction, parse, render
from trainer.spec import Task


def task(answer, **fields):
    return Task(name="t", answer=answer, **{"instruction": {"en": "Do it."}, **fields})


def order(intent, *slots):
    return {"intent": intent, "slots": [{"type": kind, "value": value} for kind, value in slots]}


ORDER = task("json", intents=["set", "ask"], slots={"room": ["hall", "bath"], "time": None, "who": None})
AS_GIVEN = ORDER.model_copy(update={"slot_order": "as_given"})
SET = task("label_set", labels=["b", "a", "c d"])
LABEL = task("label", labels=["yes", "no"])
TEXT = task("text")


class TestRender:
    def test_slots_in_schema_order_absent_left_out(self):
        given_order = order("set", ("time", "7 pm"), ("room", "hall"))
        assert render(given_order, ORDER) == '{"intent": "set", "slots": {"room": "hall", "time": "7 pm"}}'
        assert render(given_order, AS_GIVEN) == '{"intent": "set", "slots": {"time": "7 pm", "room": "hall"}}'
        assert render(order("ask"), ORDER) == '{"intent": "ask", "slots": {}}'

    def test_repeated_type_becomes_a_list(self):
        text = render(order("set", ("time", "b"), ("room", "bath"), ("time", "a")), ORDER)
        assert text == '{"intent": "set", "slots": {"room": "bath", "time": ["b", "a"]}}'

    def test_one_line_and_readable_script(self):
        text = render(order("set", ("time", "غدا\n\"x\"")), ORDER)
        assert "\n" not in text
        assert "غدا" in text

    def test_task_without_slots_or_intents(self):
        assert render({"intent": "x"}, task("json")) == '{"intent": "x"}'
        assert render(order(None, ("a", "b")), task("json", slots={"a": None})) == '{"slots": {"a": "b"}}'

    def test_of_several_right_texts_the_first(self):
        assert render(["Rome ", "in Rome"], task("text")) == "Rome"
        with pytest.raises(ValueError, match="needs a string"):
            render([], task("text"))

    def test_label_set_in_menu_order(self):
        assert render(["c d", "b"], SET) == "b, c d"

    @pytest.mark.parametrize(
        ("label", "made", "message"),
        [
            ("perhaps", LABEL, "unknown label 'perhaps'"),
            (["b", "z"], SET, "unknown label 'z'"),
            ([], SET, "'none'"),
            (["a,b"], task("label_set", labels=["a,b"]), "comma"),
            (order("fly"), ORDER, "unknown intent 'fly'"),
            (order(None), ORDER, "intent must be"),
            (order("set", ("color", "red")), ORDER, "unknown slot type 'color'"),
            (order("set", ("room", "attic")), ORDER, "slot 'room' 'attic'"),
            (order("set", ("time", "")), ORDER, "non-empty"),
            ("set", ORDER, "intent/slots"),
            (["yes"], LABEL, "needs a string"),
        ],
    )
    def test_label_that_does_not_fit_is_refused(self, label, made, message):
        with pytest.raises(ValueError, match=message):
            render(label, made)


class TestParse:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "set",
            "null",
            "[]",
            "{",
            '{"intent": "set"}',
            '{"slots": {}}',
            '{"intent": "SET", "slots": {}}',
            '{"intent": "fly", "slots": {}}',
            '{"intent": "set", "slots": []}',
            '{"intent": "set", "slots": {"color": "red"}}',
            '{"intent": "set", "slots": {"room": "attic"}}',
            '{"intent": "set", "slots": {"time": ""}}',
            '{"intent": "set", "slots": {"time": []}}',
            '{"intent": "set", "slots": {"time": 7}}',
            '{"intent": "set", "slots": {"time": {"x": "y"}}}',
            '{"intent": "set", "slots": {"time": "a", "time": "b"}}',
            '{"intent": "set", "slots": {}, "confidence": 1}',
            'Sure! {"intent": "set", "slots": {}}',
            '{"intent": "set", "slots": {}} {"intent": "set", "slots": {}}',
            '{"intent": "set", "slots": {"time": "\\ud800"}}',
            "[" * 100_000,
        ],
        ids=lambda text: text[:60],
    )
    def test_invalid_json(self, text):
        assert parse(text, ORDER) == (None, False)

    def test_spaces_are_forgiven(self):
        text = ' \n{"slots": {"room": " hall "}, "intent": "set"}\n'
        assert parse(text, ORDER) == (order("set", ("room", "hall")), True)

    def test_labels(self):
        assert parse(" yes\n", LABEL) == ("yes", True)
        assert parse("Yes", LABEL) == (None, False)
        assert parse("yes, no", LABEL) == (None, False)

    def test_label_sets(self):
        assert parse("c d,b , b", SET) == (["b", "c d"], True)
        for text in ("", "a,", "a, z", "a; b"):
            assert parse(text, SET) == (None, False)

    def test_text_is_always_valid(self):
        assert parse(" hello  there ", TEXT) == ("hello  there", True)
        assert parse("", TEXT) == ("", True)

    @given(st.text(max_size=40) | st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["intent", "slots", "time", "room", "x"]), inner, max_size=3
        ),
    ).map(json.dumps))
    def test_never_raises_and_invalid_means_none(self, text):
        for made in (ORDER, SET, LABEL, TEXT):
            parsed, valid = parse(text, made)
            assert (parsed is None) == (not valid)
            if parsed is not None and made is not TEXT:
                assert parse(render(parsed, made), made) == (parsed, True)


values = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map(str.strip).filter(bool)
slots = st.lists(
    st.tuples(st.just("room"), st.sampled_from(["hall", "bath"]))
    | st.tuples(st.sampled_from(["time", "who"]), values),
    max_size=5,
)


class TestRoundTrip:
    @given(st.sampled_from(["set", "ask"]), slots, st.sampled_from([ORDER, AS_GIVEN]))
    def test_json(self, intent, pairs, made):
        parsed, valid = parse(render(order(intent, *pairs), made), made)
        assert valid
        assert isinstance(parsed, dict)
        assert parsed["intent"] == intent
        back = [(slot["type"], slot["value"]) for slot in parsed["slots"]]
        rank = list(ORDER.slots or {}) if made is ORDER else list(dict.fromkeys(kind for kind, _ in pairs))
        assert back == sorted(pairs, key=lambda pair: rank.index(pair[0]))  # stable: values keep their order

    @given(st.sets(st.sampled_from(SET.labels or []), min_size=1))
    def test_label_set(self, names):
        parsed, valid = parse(render(list(names), SET), SET)
        assert valid
        assert parsed == [name for name in SET.labels or [] if name in names]

    @given(values)
    def test_text(self, text):
        assert parse(render(text, TEXT), TEXT) == (text, True)


class TestInstruction:
    made = task("json", instruction={"en": "Order?", "de": "Auftrag?"}, intents=["set", "ask"],
                slots={"room": ["hall", "bath"], "time": None})  # fmt: skip

    @pytest.mark.parametrize(
        ("language", "expected"), [("de", "Auftrag?"), ("de-AT", "Auftrag?"), ("ar", "Order?"), ("en", "Order?")]
    )
    def test_language_then_base_language_then_english(self, language, expected):
        assert instruction(self.made, language) == expected

    def test_no_fitting_language_is_refused(self):
        with pytest.raises(ValueError, match=r"'ar' nor in 'en' \(it has: de"):
            instruction(task("text", instruction={"de": "Schreib."}), "ar")

    def test_menu_on_one_line_without_definitions(self):
        made = self.made.model_copy(update={"menu": True})
        assert instruction(made, "en") == "Order?\nIntents: set, ask\nSlots: room (hall | bath), time"

    def test_menu_with_definitions(self):
        made = self.made.model_copy(update={"menu": True, "definitions": {"ask": "a question", "time": "when"}})
        assert instruction(made, "en").splitlines() == [
            "Order?",
            "Intents:",
            "- set",
            "- ask: a question",
            "Slots:",
            "- room (hall | bath)",
            "- time: when",
        ]

    def test_an_utterance_s_own_question_stands_below(self):
        assert instruction(self.made, "de", "Wann?") == "Auftrag?\nWann?"
        made = self.made.model_copy(update={"menu": True})
        assert instruction(made, "en", "When?").splitlines()[-1] == "When?"

    def test_labels(self):
        made = LABEL.model_copy(update={"menu": True})
        assert instruction(made, "en") == "Do it.\nLabels: yes, no"
