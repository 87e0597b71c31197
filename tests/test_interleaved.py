"""Running text with heard segments (arXiv 2510.13632, 2412.15712): cuts, places and losses by hand, packed as alone."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import toy
from tiny_families import TINY

from trainer.checkpoint import newest
from trainer.families import load
from trainer.fields import SpecError
from trainer.interleaved import Segment, interleaved, running, segments
from trainer.manifest import ManifestError, utterance
from trainer.objectives import objective_loss
from trainer.objectives.misalignment import measure
from trainer.spec import Tuning
from trainer.stage import Contrastive, CrossEntropy, Distillation, Interleaved
from trainer.store import FolderStore
from trainer.strategies import Contrastive as Recipe
from trainer.strategies import Salad
from trainer.tokens import DataError
from trainer.utterance import Utterance
from trainer.validate import validate
from trainer.views import Recordings
from trainer.words import borders, places

SHORT = Interleaved(text_words=(1, 2), speech_words=(1, 2))
LORA = Tuning(rank=4, alpha=8, encoder="frozen")


def timed(text, seconds):
    """Words in equal parts of a recording, a tenth of each silent."""
    words, part = text.split(), seconds / len(text.split())
    return [{"text": w, "start": n * part, "end": (n + 0.9) * part} for n, w in enumerate(words)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The toy's data, every recording with the times of its words."""
    folder = tmp_path_factory.mktemp("world")
    toy.data(folder / "data")
    for split in ("train", "test"):
        path = folder / "data" / "speech" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(r | {"words": timed(r["text"], r["duration_s"])}) + "\n" for r in rows))
    return toy.base(folder / "base"), folder / "data"


def job(world, recipe="salad", **changes):
    """A short job; knobs of the recipe stand in `recipe`."""
    knobs = {"context": "interleaved", "text_words": [1, 2], "speech_words": [1, 2]} if recipe == "salad" else {}
    recipe = recipe if isinstance(recipe, dict) else {"name": recipe, **knobs, **changes.pop("knobs", {})}
    return toy.resolved(*world, recipe=recipe, steps=4, **changes)


# ---- words


@pytest.mark.parametrize(("words", "wrong"), [
    ({}, r"a list of \{text, start, end\}"), ([{"w": "a"}], r"word 0 must be"),
    ([{"text": " ", "start": 0, "end": 1}], "word 0 has no text"),
    ([{"text": "a", "start": 1, "end": 0.5}], r"word 0 \(a\) must have 0 <= start <= end"),
    ([{"text": "a", "start": 1, "end": 2}, {"text": "b", "start": 0.5, "end": 3}], r"word 1 \(b\) is before the one"),
])  # fmt: skip
def test_times_of_words_have_a_form(words, wrong):
    row = {"id": "u", "task": "t", "language": "en", "split": "train", "text": "a", "audio": "a.wav"}
    with pytest.raises(ManifestError, match=f"field 'words': .*{wrong}"):
        utterance({**row, "words": words})


@pytest.mark.parametrize(("text", "words", "parts"), [
    ('He said, "Yes" — no.', "he said yes no", ["He", " said,", ' "Yes" —', " no."]),
    ("¿Qué  café?", "que CAFE", ["¿Qué", "  café?"]), ("rock-n-roll", "rock n roll", ["rock-", "n-", "roll"]),
    ("Straße 5", "strasse 5", ["Straße", " 5"]), ("好的 我", "好 的 我", ["好", "的", " 我"]), ("a b", "a", None),
    ("a b", "a c", None), ("a", "a b", None), ("a", "—", None),
])  # fmt: skip
def test_words_are_found_in_the_transcript(text, words, parts):
    found = places(text, timed(words, 1.0))
    assert (found and [text[a:b] for a, b in pairwise(found)]) == parts


def test_a_recording_is_cut_in_the_gaps():
    words = [{"text": "a", "start": 0.1, "end": 0.3}, {"text": "b", "start": 0.5, "end": 9.0}]
    assert borders(words, 10, 20) == [0, 4, 20]
    assert borders([*words, {"text": "c", "start": 9.0, "end": 9.5}], 10, 20) == [0, 4, 20, 20]


@pytest.mark.parametrize(("changes", "severity", "code"), [
    ({}, None, None), ({"text": "a c"}, "warning", "words_differ"), ({"duration_s": 0.5}, "error", "words_outside"),
    ({"audio": None, "duration_s": None}, "warning", "words_unheard"),
])  # fmt: skip
def test_validation_looks_at_times_of_words(changes, severity, code):
    row = Utterance("u", "t", "en", "train", "a b", audio="a.wav", duration_s=1.0, words=tuple(timed("a b", 1.0)))
    found = validate([replace(row, **changes)], listen=False).issues
    assert [(i.severity, i.code) for i in found if i.field == "words"] == ([(severity, code)] if code else [])


# ---- segments


H, R = True, False


@pytest.mark.parametrize(("count", "draws", "found"), [
    (9, [1, 0, 0, 1], [(H, 0, 1), (R, 1, 2), (H, 2, 4), (R, 4, 5), (H, 5, 6), (R, 6, 7), (H, 7, 8), (R, 8, 9)]),
    (5, [0, 1, 1], [(R, 0, 2), (H, 2, 4), (R, 4, 5)]), (3, [1], [(H, 0, 1), (R, 1, 2)]),
    (4, [0, 1, 1], [(H, 0, 1), (R, 1, 4)]), (4, [0, 1, 1, 1], [(H, 0, 2), (R, 2, 4)]),
    (2, [1, 5], [(H, 0, 1), (R, 1, 2)]),
])  # fmt: skip
def test_segments_by_hand(count, draws, found):
    """A heard end is left out; what has no read segment behind a heard one is heard first."""
    assert segments(count, SHORT, draws + [0] * count) == [Segment(*s) for s in found]


def test_segments_cover_the_text_and_always_predict():
    rng = np.random.default_rng(0)
    for count in range(2, 60):
        for view in (SHORT, Interleaved(), Interleaved(text_words=(4, 10), speech_words=(2, 5))):
            made = segments(count, view, rng.integers(0, 2**63, count + 2).tolist())
            assert [s.first for s in made] == [0, *(s.last for s in made[:-1])]
            assert not made[-1].heard
            assert any(s.heard for s in made)
            assert all(a.heard != b.heard for a, b in pairwise(made))
            assert all(s.last - s.first <= (view.speech_words if s.heard else view.text_words)[1] for s in made[:-1])


# ---- examples


@pytest.fixture(scope="module")
def model(world):
    return load(world[0], tuning=LORA, seed=0)


def example(model, draws=(1, 1, 0, 0), text="one two three four five", seconds=2.0):
    """Heard: one two; read: three; heard: four; read: five."""
    row = Utterance("u", "t", "en", "train", text, audio="a", words=tuple(timed(text, seconds)))
    return interleaved(row, SHORT, model.tokens, toy.wave(300, seconds), [*draws, 0, 0, 0])


def test_what_is_supervised_by_hand(model):
    mixed, read = example(model)
    ids, audio = model.tokens.tokenizer.ids, model.tokens.audio_id
    clips = [round(0.78 * 16000), round(1.18 * 16000) - round(0.78 * 16000)]  # gaps end each .4 s, .04 s long
    counts = [model.tokens.audio_tokens(n) for n in (clips[0], round(1.58 * 16000) - round(1.18 * 16000))]
    assert mixed.prompt == (audio,) * counts[0]
    assert mixed.answer == (*ids(" three"), *(audio,) * counts[1], *ids(" five"))
    assert [len(w) for w in mixed.waves] == [clips[0], round(1.58 * 16000) - round(1.18 * 16000)]
    assert np.array_equal(mixed.waves[1], toy.wave(300, 2.0)[round(1.18 * 16000) : round(1.58 * 16000)])
    assert read.prompt == (*ids("one two"),)
    assert read.answer == (*ids(" three"), *ids(" four"), *ids(" five"))
    for made in (mixed, read):
        batch = model.collate([made])
        assert batch.targets.tolist() == [*ids(" three"), *ids(" five")]
        whole = made.prompt + made.answer
        places_of = [n for n in range(len(whole)) if n >= len(made.prompt) and n - len(made.prompt) in made.supervised]
        assert batch.at.tolist() == [n - 1 for n in places_of]
        assert [whole[n] for n in places_of] == batch.targets.tolist()


def test_a_segment_too_short_to_be_heard_is_read(model):
    mixed, read = example(model, text="one two", seconds=0.02, draws=(1, 0))
    assert mixed.wave is None
    assert mixed.prompt + mixed.answer == read.prompt + read.answer


@pytest.mark.parametrize(("changes", "wrong"), [
    ({"words": None}, "no times of words"), ({"text": "other words"}, "not those of the transcript"),
    ({"text": "one", "words": tuple(timed("one", 1.0))}, "one word cannot"),
])  # fmt: skip
def test_what_cannot_be_shown_so_names_the_utterance(model, changes, wrong):
    row = Utterance("u", "t", "en", "train", "a b", audio="a", words=tuple(timed("a b", 1.0)))
    with pytest.raises(DataError, match=f"utterance u: .*{wrong}"):
        interleaved(replace(row, **changes), SHORT, model.tokens, toy.wave(300, 1.0), [0] * 9)


def stock(model, made):
    """Log-probabilities (time, vocabulary) of a sequence by the stock decoder's plain forward."""
    inputs = model.embed(torch.tensor([made.prompt + made.answer]), made.waves)
    hidden = model.language_model(inputs_embeds=inputs).last_hidden_state[0]
    return model.logits(hidden).log_softmax(-1)


def test_the_losses_are_the_formulas_by_the_stock_forward(model, world):
    """A twin of two segments: -sum log P(w | c), and sum KL(Q(. | w) || P(. | c)), at the read words alone."""
    row = moved(load(world[0], tuning=LORA, seed=0))
    mixed, read = example(row, draws=(1, 1, 1), text="one two three four")
    assert len(mixed.cuts) == 1
    batch = row.collate([replace(mixed, twin=read)])
    with torch.no_grad():
        said = stock(row, mixed)
        with row.base_only():
            taught = stock(row, read)
        first = {id(e): len(e.prompt) for e in (mixed, read)}
        nll = -sum(float(said[first[id(mixed)] + n - 1, mixed.answer[n]]) for n in mixed.supervised)
        pairs = zip(mixed.supervised, read.supervised, strict=True)
        pairs = [(said[first[id(mixed)] + a - 1], taught[first[id(read)] + b - 1]) for a, b in pairs]
        kl = sum(float((q.exp() * (q - p)).sum()) for p, q in pairs)
        assert kl > 1e-3
        for alpha, want in ((0.0, nll), (1.0, kl), (0.25, 0.25 * kl + 0.75 * nll)):
            loss = objective_loss(Distillation(alpha=alpha), row, batch)
            assert float(loss.total) == pytest.approx(want, rel=1e-4)
        assert float(objective_loss(CrossEntropy(), row, batch).total) == pytest.approx(nll, rel=1e-4)


def test_a_sentence_is_plain_language_modelling(model):
    row = Utterance("u", "t", "en", "train", "one two three four five")
    made = running(row, model.tokens)
    ids = torch.tensor(model.tokens.tokenizer.ids(row.text))
    with torch.no_grad():
        logits = model.logits(model.language_model(input_ids=ids[None]).last_hidden_state[0])
        want = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
        assert float(objective_loss(CrossEntropy(), model, model.collate([made])).total) == pytest.approx(float(want))
    with pytest.raises(DataError, match="one token of text"):
        running(replace(row, text="a"), model.tokens)


# ---- packed as alone, in every way that families splice


def moved(model):
    """The model with an adapter that does something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.05, generator=generator).to(parameter.dtype))
    return model


FAMILIES = ["attune_composed: hubert conv", "granite_speech", "qwen2_5_omni", "qwen2_audio", "voxtral"]


@pytest.mark.parametrize("family", FAMILIES)
def test_several_segments_packed_are_as_alone(family, tmp_path):
    """Loss and every gradient in fp64, three sequences of several recordings and text among them."""
    folder = TINY[family].build(tmp_path / "base")
    model = load(folder, tuning=LORA, dtype=torch.float64)
    for parameter in model.trained.values():
        parameter.data = parameter.data.double()
    moved(model)
    shown = [example(model, draws)[0] for draws in ((1, 1, 0, 0), (0, 0, 0, 1), (1, 0, 1, 1))]
    shown.append(running(Utterance("t", "t", "en", "train", "one two three"), model.tokens))
    assert max(len(e.waves) for e in shown) > 1

    def gradients(parts):
        for parameter in model.trained.values():
            parameter.grad = None
        totals = [objective_loss(CrossEntropy(), model, model.collate(part)).total for part in parts]
        torch.stack(totals).sum().backward()
        return float(sum(totals)), {k: p.grad for k, p in model.trained.items() if p.grad is not None}

    (packed, mine), (alone, theirs) = gradients([shown]), gradients([[e] for e in shown])
    assert packed == pytest.approx(alone, rel=1e-9)
    assert mine.keys() == theirs.keys()
    assert {model.part_of(k) for k in mine} == {"lm", "projector"}
    for name, gradient in mine.items():
        assert torch.isfinite(gradient).all()
        assert float((gradient - theirs[name]).norm()) <= 1e-6 * float(theirs[name].norm()) + 1e-9, name


# ---- jobs


def train(resolved, corpus, world, **options):
    """(step events, trained state) of a whole run."""
    made, events = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed), []
    loop = toy.loop(resolved, corpus, made, sink=events.append, **options)
    if options.get("store") and (found := newest(options["store"], events.append)):
        loop.resume(found)
    loop.run()
    return [e for e in events if e["kind"] == "step"], made.files()


def values(events):
    return [e["loss"] for e in events]


def test_a_presentation_is_cut_alike_whenever_it_is_made(world, model):
    resolved, corpus = job(world)
    (stage,) = resolved.stages
    one, other = (toy.loop(resolved, corpus, model).examples for _ in range(2))
    made = [one(stage, "speech", 0, 1, at) for at in range(12)]
    for at in reversed(range(12)):
        again = other(stage, "speech", 0, 1, at)
        assert (again.prompt, again.answer, again.context, again.cuts) == (
            made[at].prompt, made[at].answer, made[at].context, made[at].cuts)  # fmt: skip
    assert len({(e.prompt, e.answer) for e in made}) > 2


def test_resume_is_undisturbed_and_cuts_change_rounding_only(world, tmp_path):
    resolved, corpus = job(world, knobs={"measure_every": 2})
    whole, files = train(resolved, corpus, world)
    store, told = FolderStore(tmp_path), iter(["continue", "checkpoint_and_exit"])
    first, _ = train(resolved, corpus, world, store=store, control=lambda: next(told), checkpoint_every=99)
    rest, resumed = train(resolved, corpus, world, store=store, attempt=2)
    assert values(first) + values(rest) == values(whole)
    assert resumed == files
    assert values(train(resolved, corpus, world, budget=1)[0]) == pytest.approx(values(whole), rel=1e-5)
    assert all(e["misalignment"] > 0 for e in whole if "misalignment" in e)


def test_alpha_0_is_next_word_prediction_bit_for_bit(world):
    resolved, corpus = job(world, knobs={"alpha": 0})
    (stage,) = resolved.stages
    plain = resolved.model_copy(update={"stages": [stage.model_copy(update={"objective": CrossEntropy()})]})
    (a, one), (b, other) = train(resolved, corpus, world), train(plain, corpus, world)
    assert values(a) == values(b)
    assert one == other


def test_the_untrained_model_has_forgotten_nothing(world, model):
    resolved, corpus = job(world, knobs={"measure_every": 2})
    reference = toy.loop(resolved, corpus, model).reference(resolved.stages[0])
    found = measure(model, reference, 1000)
    assert found.forgetting == pytest.approx(0, abs=1e-6)
    assert found.misalignment > 1e-3
    assert found.predictions == sum(len(e.supervised) for e in reference)


def test_what_is_measured_can_be_cut(world, model, tmp_path):
    """A test row whose words are not its transcript's is left out, as it is where a job is refused."""
    shutil.copytree(world[1], tmp_path / "data")
    path = tmp_path / "data" / "speech" / "test.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first.replace("tone 0 is", "tone 0 was"), *rest]) + "\n")
    resolved, corpus = job((world[0], tmp_path / "data"), knobs={"measure_every": 2})
    assert corpus.test.rows[0].text.startswith("tone 0 was")
    reference = toy.loop(resolved, corpus, model).reference(resolved.stages[0])
    assert len(reference) == len(corpus.test.rows) - 1


@pytest.mark.parametrize("pretrain", ["mixed", "contrastive+mixed"])
def test_mixed_pretraining_of_the_contrastive_paper(world, pretrain):
    """Next words, and what is mixed brought together with the transcript."""
    knobs = {"group_size": 4} if "+" in pretrain else {}
    recipe = {"name": "contrastive", "pretrain": pretrain, "pretrain_epochs": 8 * 2 / 18, **knobs}
    resolved, corpus = job(world, recipe)
    stage, tuning = resolved.stages
    assert stage.view == Interleaved(text_words=(4, 10), speech_words=(2, 5))
    assert (stage.steps, tuning.steps, tuning.view.kind) == (2, 2, "plain")
    made = moved(load(world[0], tuning=LORA, seed=0))
    loop = toy.loop(resolved, corpus, made)
    with loop.ahead(stage, loop.plans[0]) as ahead:
        batch = made.collate(list(ahead.step(0).outlines))
    loss = objective_loss(stage.objective, made, batch)
    words = objective_loss(CrossEntropy(), made, batch)
    if pretrain == "mixed":
        assert torch.equal(loss.total, words.total)
    else:
        assert isinstance(stage.objective, Contrastive)
        assert stage.objective.answer_weight == 1
        pairs = loss.figures[0] * len(batch.targets) / len(batch)
        assert float(loss.total) == pytest.approx(float(words.total + pairs), rel=1e-4)
    loss.total.backward()
    found = [p.grad for k, p in made.trained.items() if made.part_of(k) == "projector"]
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in found)


def test_what_cannot_be_interleaved_is_refused(world, tmp_path):
    with pytest.raises(SpecError, match=r"data.trim_silence: .*times of words"):
        job(world, data={"text": "text", "speech": "speech", "trim_silence": "on"})
    bare = toy.base(tmp_path / "base"), toy.data(tmp_path / "data")
    with pytest.raises(SpecError, match=r"data.speech: 18 rows have no times of two words .*first is train-0"):
        job(bare)
    with pytest.raises(SpecError, match="context answer has no segments; leave text_words out"):
        job(world, {"name": "salad", "text_words": [1, 2]})
    with pytest.raises(SpecError, match="pretrain asr has no segments; leave speech_words out"):
        job(world, {"name": "contrastive", "pretrain": "asr", "speech_words": [1, 2]})
    with pytest.raises(SpecError, match="the fewest come first"):
        job(world, knobs={"text_words": [3, 2]})


@pytest.mark.parametrize("recipe", [
    Salad(), Salad(context="interleaved", text_words=(1, 2)), Recipe(), Recipe(pretrain="asr"),
    Recipe(pretrain="mixed"),
])  # fmt: skip
def test_a_recipe_stored_with_every_field_is_read_again(recipe):
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe


def test_recordings_are_read_once_and_segments_are_not_kept(world):
    """States of segments would fill the cache, and are never asked for again."""
    resolved, corpus = job(world)
    made = load(world[0], tuning=LORA, seed=0)
    shown = toy.loop(resolved, corpus, made).examples
    before = len(made.cache)
    made.forward(made.collate([shown(resolved.stages[0], "speech", 0, 1, 0)]))
    assert len(made.cache) == before
    assert Recordings(16000).wave(corpus.sources["speech"].rows[0]) is not None
