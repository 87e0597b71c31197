"""Constrained decoding: what it lets through is what the task allows, whatever the model wants to say."""

import json
import random
from pathlib import Path

import pytest
import toy
from tokenizers import Tokenizer as Stock
from tokenizers import decoders, models, pre_tokenizers

from trainer import answers
from trainer.bases import BaseError
from trainer.decoding import constraint_of, generate
from trainer.decoding.constrain import Constraint, Trie
from trainer.decoding.grammar import DEAD, Grammar
from trainer.decoding.vocabulary import Vocabulary, vocabulary_of
from trainer.evaluate import predict
from trainer.families import load
from trainer.fields import SpecError
from trainer.manifest import Utterance
from trainer.resolve import read_and_resolve
from trainer.spec import Decode, Task, parse_job
from trainer.views import Example, Recordings

ASK = {"en": "What is said?"}
LABELS = ["go", "go on", "stop", "stop it", 'étape \\ "é"', "向左", "going"]
SLOTS = {"size": ["small", "big", 'very "big"'], "place": None, "never": [], "time": None}
TASKS = {
    "label": Task(name="label", instruction=ASK, answer="label", labels=LABELS),
    "set": Task(name="set", instruction=ASK, answer="label_set", labels=LABELS),
    "json": Task(name="json", instruction=ASK, answer="json", intents=["order", "order more"], slots=SLOTS),
    "any intent": Task(name="any", instruction=ASK, answer="json", slots={"place": None}),
    "as given": Task(
        name="given", instruction=ASK, answer="json", intents=["order"], slots=SLOTS, slot_order="as_given"
    ),
    "intent alone": Task(name="alone", instruction=ASK, answer="json", intents=["order", "ask"]),
    "closed": Task(name="closed", instruction=ASK, answer="json", intents=["order"], slots={"size": ["s", "small"]}),
}
WRITTEN = [name for name, task in TASKS.items() if task.answer != "label"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights: what it wants to say is noise."""
    return load(toy.base(tmp_path_factory.mktemp("base")))


def label(task: Task, draw: random.Random):
    """A label of the task, with values of any length and of every kind of character."""
    if task.answer == "label_set":
        return draw.sample(LABELS, draw.randint(1, len(LABELS)))
    texts = ["x", "a b", "é", "向左 走", '"quoted"', "back\\slash", "a\tb", "😀 ok", "ends ", "/", "7:30"]
    slots = []
    for kind, closed in (task.slots or {}).items():
        if closed is None or closed:
            values = closed or texts
            slots += [{"type": kind, "value": draw.choice(values)} for _ in range(draw.choice([0, 0, 1, 1, 2, 3]))]
    draw.shuffle(slots)
    intent = draw.choice(task.intents) if task.intents else draw.choice([None, "any thing"])
    return {"intent": intent, "slots": slots}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_answer_that_is_trained_on_may_be_written(name):
    task, draw = TASKS[name], random.Random(0)
    grammar = Grammar(task)
    for _ in range(200):
        text = answers.render(label(task, draw), task)
        state = grammar.start
        for byte in text.encode():
            assert not grammar.ends(state) or task.answer == "label_set"
            state = grammar.step(state, byte)
            assert state != DEAD, text
        assert grammar.ends(state), text


@pytest.mark.parametrize("name", WRITTEN)
def test_whatever_may_be_written_parses(name):
    """Random walks over the bytes that are allowed, ended by the shortest closing."""
    task, draw = TASKS[name], random.Random(1)
    grammar = Grammar(task)
    for _ in range(100):
        state, text = grammar.start, b""
        for _ in range(draw.randint(0, 60)):
            allowed = [b for b in range(256) if grammar.step(state, b) != DEAD]
            if not allowed:
                break
            byte = draw.choice(allowed)
            state, text = grammar.step(state, byte), text + bytes([byte])
        closing = grammar.closing(state)
        for n, byte in enumerate(closing):
            assert grammar.closing(state) == closing[n:]
            state = grammar.step(state, byte)
        assert grammar.ends(state)
        assert answers.parse((text + closing).decode(), task)[1], text + closing


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", list(TASKS))
def test_answers_of_a_model_that_knows_nothing_parse(model, name, beams):
    task = TASKS[name]
    for room in (12, 13, 20, 40):
        try:
            constraint = constraint_of([task], model, room)
        except SpecError:
            assert room < 20, "the shortest answer is longer than this"
            continue
        asked = [example(model, n) for n in range(10)]
        found = generate(model, asked, beams=beams, max_new_tokens=room, constraint=constraint)
        for ids in found:
            text = model.tokens.tokenizer.decode(ids)
            assert len(ids) <= room
            assert answers.parse(text, task)[1], text


def example(model, n: int) -> Example:
    return Example(f"t{n}", model.tokens.prompt_ids("What is said?", f"sentence {n * 37}"), (), None)


def test_an_answer_that_is_allowed_stays_as_it_is(model):
    """The constraint changes only what the model may not say."""
    asked = [example(model, n) for n in range(8)]
    free = generate(model, asked, max_new_tokens=4)
    trie = Trie({str(n): tuple(ids) for n, ids in enumerate(free)})
    constraint = Constraint([trie], model.tokens.stops, 4, "t")
    assert generate(model, asked, max_new_tokens=4, constraint=constraint) == free


def test_room_that_no_answer_fits_into_is_refused(model):
    with pytest.raises(SpecError, match=r"evaluate\.decode\.max_new_tokens: the shortest answer of task json takes"):
        constraint_of([TASKS["json"]], model, 3)
    with pytest.raises(SpecError, match=r"label 'étape .* takes .* tokens; give at least as many"):
        constraint_of([TASKS["label"]], model, 3)
    text = Task(name="words", instruction=ASK, answer="text")
    assert constraint_of([text], model, 1) is None


def test_a_test_of_text_has_nothing_to_constrain(tmp_path):
    rows = {"name": "t", "base": "x", "data": {"corpus": "words"}, "language": "en", "evaluate": {"on": "words:test"}}
    for split in ("train", "test"):
        line = {"id": split, "task": "transcribe", "language": "en", "split": split, "text": split, "speaker": "a"}
        (tmp_path / "words").mkdir(exist_ok=True)
        (tmp_path / "words" / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    spec = parse_job({**rows, "evaluate": {**rows["evaluate"], "decode": {"constrain": True}}})
    with pytest.raises(SpecError, match=r"evaluate\.decode\.constrain: the test asks for text"):
        read_and_resolve(spec, [tmp_path])


def test_predictions_are_constrained_by_their_task(model):
    rows = [
        Utterance(id=str(n), task=task, language="en", split="test", text=f"number {n}", label=right)
        for n, (task, right) in enumerate([("label", "go"), ("json", {"intent": "order", "slots": []})] * 3)
    ]
    tasks = {"label": TASKS["label"], "json": TASKS["json"]}
    recordings = Recordings(16000)
    free = predict(model, rows, tasks, "text", Decode(max_new_tokens=24), recordings)
    limited = predict(model, rows, tasks, "text", Decode(max_new_tokens=24, constrain=True), recordings)
    assert not any(row["valid"] for row in free)
    assert all(row["valid"] for row in limited)
    assert [row["task"] for row in limited] == ["label", "json"] * 3
    assert predict(model, rows[:1], tasks, "text", Decode(max_new_tokens=24, constrain=True), recordings) == limited[:1]


# -------------------------------------------------------------------------------------------------- vocabularies


def test_bytes_of_byte_level_tokens_are_what_they_decode_to(model):
    vocabulary = vocabulary_of(model.folder)
    assert not vocabulary.spaced
    for text in ("plain words", "Ünïcödé und 向左", '{"a": "b \\" c"}\n\t', "😀"):
        ids = model.tokens.tokenizer.ids(text)
        assert b"".join(vocabulary._bytes[i] for i in ids) == text.encode()
    assert set(model.tokens.tokenizer.special.values()).isdisjoint(vocabulary._bytes)
    assert vocabulary.fewest(b"") == 0
    assert vocabulary.fewest("é".encode()) <= 2


def test_a_sentencepiece_vocabulary_writes_its_spaces(tmp_path):
    pieces = ["<unk>", "\u2581go", "\u2581", "g", "o", "n", "\u2581on", "s", "t", "p", "<0xC3>", "<0xA9>"]
    stock = Stock(models.BPE(vocab={p: n for n, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    stock.pre_tokenizer = pre_tokenizers.Metaspace()
    stock.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    stock.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary(tmp_path)
    assert vocabulary.spaced
    task = Task(name="t", instruction=ASK, answer="label_set", labels=["go on", "gop"])
    grammar = Grammar(task, spaced=vocabulary.spaced)
    first = {i for ids in vocabulary.edges(grammar, grammar.start).values() for i in ids}
    assert {pieces[i] for i in first} == {"\u2581go", "\u2581", "g"}
    state = grammar.start
    for piece in ("\u2581go", "\u2581on"):
        state = vocabulary.after(grammar, state, pieces.index(piece))
    assert grammar.ends(state)
    assert stock.decode([1, 6]) == "go on"
    assert vocabulary.after(grammar, state, 3) == DEAD


def test_another_kind_of_tokenizer_is_refused_by_name(tmp_path):
    stock = Stock(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    stock.decoder = decoders.WordPiece()
    stock.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BaseError, match="decodes by WordPiece; constrained decoding knows byte-level"):
        vocabulary_of(Path(tmp_path))
