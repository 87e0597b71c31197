"""label_permutation: neutral = sft in every byte; one draw serves menu, demonstrations and query; scopes; resume."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import toy
import yaml
from transformers import BertConfig, BertModel, BertTokenizerFast

from trainer import answers
from trainer.batch import assign, groups
from trainer.context import NONE, Context, context
from trainer.corpus import Reader
from trainer.estimate import estimate
from trainer.fields import SpecError
from trainer.labels import names
from trainer.plan import plan_stage
from trainer.result import Result
from trainer.run import run
from trainer.sentence_encoder import sentence_encoder
from trainer.spec import builtin_tasks, read_yaml
from trainer.store import FolderStore
from trainer.strategies import LabelPermutation
from trainer.study import expand, load
from trainer.tokens import DataError, Tokens
from trainer.views import Recordings, reference_examples, training_examples

TASK = {
    "name": "tone", "instruction": {"en": "Which tone?"}, "answer": "label", "labels": toy.LABELS, "menu": True,
    "prompt_order": "instruction_first",
    "definitions": {"low": "a deep voice", "middle": "a usual voice", "high": "a bright voice"},
}  # fmt: skip
WORDS = ["deep", "usual", "bright"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny base, and the toy's tones under a menu; no text says a label."""
    folder = tmp_path_factory.mktemp("world")
    data = toy.data(folder / "data")
    for name in ("speech", "text"):
        (data / name / "task.yaml").write_text(yaml.safe_dump(TASK))
        for path in (data / name).glob("*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for n, row in enumerate(rows):
                row["text"] = f"{name} {n} sounds {WORDS[toy.LABELS.index(row['label'])]}"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return toy.base(folder / "base"), data


def job(world, recipe=None, **fields):
    recipe = {"name": "label_permutation", **(recipe or {})}
    return toy.resolved(*world, recipe=recipe, **{"steps": 6, **fields})


def contexts(resolved, corpus):
    plans = [plan_stage(resolved, n) for n in range(len(resolved.stages))]
    return plans, [context(resolved, n, plan, corpus) for n, plan in enumerate(plans)]


def examples(world, resolved, corpus):
    """All prompts and answers of the first stage as text, with the utterance each is of."""
    (plan, *_), (found, *_) = contexts(resolved, corpus)
    stage, tokens = resolved.stages[0], Tokens(world[0])
    make = training_examples(resolved, corpus, {stage.name: found}, tokens, Recordings(16000))
    out = []
    for i in range(len(plan)):
        source = stage.sources[plan.source[i]]
        made = make(stage, source, int(plan.row[i]), int(plan.view[i]), i)
        row = corpus.sources[source].rows[plan.row[i]]
        text = [tokens.tokenizer.decode(ids).strip() for ids in (made.prompt, made.answer)]
        out.append((row, *text, found.at(i, 0, [corpus.sources[s].rows for s in resolved.sources]).demonstrations))
    return out


NEUTRAL = {"labels": "regular", "demonstrations": {"most": 0}}


def test_the_neutral_setting_is_sft_in_plan_examples_and_adapter(world, tmp_path):
    made = {}
    for name, recipe in (("sft", {"name": "sft"}), ("neutral", {"name": "label_permutation", **NEUTRAL})):
        resolved, corpus = toy.resolved(*world, recipe=recipe, steps=6)
        store = FolderStore(tmp_path / name)
        result = run(resolved, store, corpus=corpus, threads=1)
        stage = resolved.stages[0]
        files = sorted(key for key in store.list("attempts/1/checkpoints/6/") if "json" not in key)
        plan = plan_stage(resolved, 0).sha256
        made[name] = (plan, [store.get(key) for key in files], result.final_loss, result.scores)
        assert result.outcome == "succeeded"
        assert files
        assert stage.view.kind == {"sft": "plain", "neutral": "labels"}[name]  # two ways to the same bytes
    assert made["sft"] == made["neutral"]


def test_under_random_labels_menu_demonstrations_and_answer_are_of_one_draw(world):
    resolved, corpus = job(world)
    meaning = dict(zip(WORDS, TASK["definitions"].values(), strict=True))
    mappings, shown = set(), 0
    for row, prompt, answer, demonstrations in examples(world, resolved, corpus):
        menu = dict(line[2:].split(": ") for line in prompt.splitlines() if line.startswith("- "))
        named = {definition: name for name, definition in menu.items()}
        assert sorted(menu) == sorted(toy.LABELS)
        assert answer == named[meaning[row.text.split()[-1]]]
        lines = [line for line in prompt.splitlines() if line.startswith(("Input: ", "Answer: "))]
        given = [(u.text, named[meaning[u.text.split()[-1]]]) for u in demonstrations]
        assert lines == [line for text, name in given for line in (f"Input: {text}", f"Answer: {name}")]
        mappings.add(tuple(named.items()))
        shown += len(lines)
    assert len(mappings) == 6  # all of three labels
    assert shown > 40


@pytest.mark.parametrize("recipe", [{"labels": "symbol"}, {"labels": "random", "names": "symbols"}])
def test_a_prompt_under_symbols_says_no_real_name(world, recipe):
    resolved, corpus = job(world, recipe)
    for _, prompt, answer, _ in examples(world, resolved, corpus):
        words = set(f"{prompt} {answer}".replace(":", " ").replace(",", " ").split())
        assert not words & set(toy.LABELS)
        assert answer in ("alpha", "beta", "gamma")


def test_demonstrations_are_other_sentences_of_the_training_rows_in_every_number(world):
    resolved, corpus = job(world, steps=20)
    numbers = set()
    train = {u.id for name in resolved.sources for u in corpus.sources[name].rows}
    for row, _, _, demonstrations in examples(world, resolved, corpus):
        texts = [u.text for u in demonstrations]
        assert row.text not in texts
        assert len(set(texts)) == len(texts)
        assert {u.id for u in demonstrations} <= train
        numbers.add(len(texts))
    assert numbers == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("demonstrations", [
    {"most": 3}, {"most": 3, "retriever": "random"}, {"least": 2, "most": 3, "nearest": 8},
])  # fmt: skip
def test_a_context_is_pure_and_comes_back_as_it_was_saved(world, demonstrations):
    resolved, corpus = job(world, {"demonstrations": demonstrations})
    _, (found,) = contexts(resolved, corpus)
    _, (again,) = contexts(*job(world, {"demonstrations": demonstrations}))
    assert found.sha256 == again.sha256 == Context.load(found.save()).sha256
    other, corpus = job(world, {"demonstrations": demonstrations}, seed=1)
    assert contexts(other, corpus)[1][0].sha256 != found.sha256
    assert found.row.shape == (48, 3)
    if demonstrations.get("least"):
        assert (found.source[:, 1] != NONE).all()


def test_the_context_is_the_one_written_down(world):
    """Golden: an unintended change of a context is a change of every result."""
    resolved, corpus = job(world, seed=5)
    _, (found,) = contexts(resolved, corpus)
    assert found.sha256 == "3b60b0c4bf0d0246ae3e2e76900adeb3d11f391339ccafe2bfb11129220214ce"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A sentence encoder of random weights whose tokens are words."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "speech", "text", "sounds", *WORDS, *map(str, range(24))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, initializer_range=1.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_sentence_encoder_by_path_finds_what_its_vectors_say(world, bert, pooling):
    ask = {"least": 3, "most": 3, "retriever": str(bert), "pooling": pooling}
    resolved, corpus = job(world, {"demonstrations": ask, "sources": ["text"]})
    pinned = resolved.stages[0].view.demonstrations
    assert pinned.revision.startswith("files:")
    plan = plan_stage(resolved, 0)
    found = context(resolved, 0, plan, corpus, sentence_encoder)
    texts = [u.text for u in corpus.sources["text"].rows]
    tokenizer, model = BertTokenizerFast.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    vectors = torch.stack([s[0] if pooling == "cls" else s.mean(0) for s in states])
    cosine = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1).fill_diagonal_(-2)
    assert cosine.masked_fill(torch.eye(24, dtype=torch.bool), 1).std() > 0.01  # so that an order means something
    for at, query in enumerate(plan.row):
        near = cosine[int(query), found.row[at].astype(np.int64)]
        torch.testing.assert_close(near.flip(0), cosine[int(query)].topk(3).values, rtol=0, atol=2e-6)  # nearest last


def test_a_folder_that_is_no_sentence_encoder_is_named(world, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    resolved, corpus = job(world, {"demonstrations": {"most": 1, "retriever": str(tmp_path)}})
    with pytest.raises(DataError, match=r"demonstrations\.retriever: .* is no sentence encoder"):
        context(resolved, 0, plan_stage(resolved, 0), corpus, sentence_encoder)


def test_a_sentence_encoder_that_has_changed_is_refused(world, bert, tmp_path):
    shutil.copytree(bert, copy := tmp_path / "bert")
    resolved, corpus = job(world, {"demonstrations": {"most": 1, "retriever": str(copy)}})
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    with pytest.raises(DataError, match="has changed since the job was resolved; submit it again"):
        context(resolved, 0, plan_stage(resolved, 0), corpus, sentence_encoder)


def test_how_long_a_draw_holds(world):
    """24 sentences and 18 recordings in two stages of 8 + 8 steps of 8: about three passes each."""

    def draws(scope, fraction=1):
        view = {"kind": "labels", "labels": "random", "scope": scope}
        mix = {"text": 0.5, "speech": 0.5}
        stages = [{"name": n, "steps": 8, "mix": mix, "view": view, "fraction": fraction} for n in ("a", "b")]
        resolved, corpus = toy.resolved(*world, recipe={"name": "custom", "stages": stages}, steps=None)
        plans, found = contexts(resolved, corpus)
        return plans, np.concatenate([c.draw for c in found])

    assert draws("example")[1].tolist() == list(range(128))
    assert draws("batch")[1].tolist() == [step for step in range(16) for _ in range(8)]
    assert draws("run")[1].tolist() == [0] * 128
    plans, epoch = draws("epoch")
    source = np.concatenate([plan.source for plan in plans])
    assert epoch[source == 0].tolist() == [n // 24 for n in range(64)]
    assert epoch[source == 1].tolist() == [n // 18 for n in range(64)]
    _, epoch = draws("epoch", 0.5)  # 12 sentences and 9 recordings, in passes of each stage's own
    assert epoch[source == 0].tolist() == [n // 12 for n in range(32)] * 2
    assert epoch[source == 1].tolist() == [n // 9 for n in range(32)] * 2


def test_resumed_is_undisturbed_and_the_context_is_an_input(world, tmp_path):
    resolved, corpus = job(world)
    whole, parts = FolderStore(tmp_path / "whole"), FolderStore(tmp_path / "parts")
    undisturbed = run(resolved, whole, corpus=corpus, threads=1)
    left = [3]

    def control():
        left[0] -= 1
        return "checkpoint_and_exit" if left[0] == 0 else "continue"

    assert run(resolved, parts, control=control, corpus=corpus, threads=1).outcome == "yielded"
    ended = run(resolved, parts, corpus=corpus, threads=1)
    assert ended.outcome == undisturbed.outcome == "succeeded"
    key = "inputs/label_permutation/context.npz"
    assert whole.get(key) == parts.get(key)
    assert ended.lineage.contexts == {"label_permutation": Context.load(whole.get(key)).sha256}
    adapters = [
        [store.get(k) for k in sorted(store.list(f"attempts/{no}/checkpoints/6/adapter/")) if k.endswith("safetensors")]
        for store, no in ((whole, 1), (parts, 2))
    ]
    assert adapters[0] == adapters[1] != []
    assert ended.scores == undisturbed.scores


def test_an_unseen_task_is_tested_under_its_own_names(world, tmp_path):
    """The test's task has no training row: it is answered by its own menu, and is no part of the training."""
    other = {**TASK, "name": "pitch", "labels": ["dark", "light"], "definitions": {"dark": "deep", "light": "bright"}}
    folder = tmp_path / "pitch"
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml.safe_dump(other))
    rows = [
        {"id": f"p{n}", "task": "pitch", "language": "en", "split": "test", "text": f"number {n}", "label": "dark"}
        for n in range(4)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    resolved, corpus = job(world, steps=2, evaluate={"on": f"{folder}:test", "decode": {"max_new_tokens": 2}})
    assert [t.name for t in resolved.spec.tasks] == ["pitch", "tone"]
    result = run(resolved, FolderStore(tmp_path / "out"), corpus=corpus, threads=1)
    assert isinstance(result, Result)
    assert {score.task for score in result.scores} == {"pitch"}


def test_a_demonstration_that_fits_no_label_is_named(world):
    resolved, corpus = job(world, {"demonstrations": {"least": 5, "most": 5}, "sources": ["text"]})
    wrong = [replace(u, label="shrill") if u.id == "text-3" else u for u in corpus.sources["text"].rows]
    corpus.sources["text"].rows[:] = wrong
    with pytest.raises(DataError, match="utterance text-3"):
        examples(world, resolved, corpus)


def test_too_few_other_sentences_are_said(world):
    resolved, corpus = job(world, {"demonstrations": {"least": 60, "most": 60}})
    with pytest.raises(DataError, match=r"task tone has 41 other sentences in its language.*least is 60; lower it"):
        contexts(resolved, corpus)


REFUSED = [
    ({"demonstrations": {"retriever": "tfdif"}}, "use random, tfidf, or a sentence encoder by hub id"),
    ({"demonstrations": {"least": 3, "most": 2}}, "least is 3 and most is 2; raise most"),
    ({"demonstrations": {"most": 3, "nearest": 2}}, "nearest is 2 and most is 3; raise nearest"),
    ({"demonstrations": {"most": 3, "nearest": 5, "retriever": "random"}}, "retriever random knows no nearest"),
    ({"labels": "symbol", "symbols": ["a"]}, "recipe.symbols: 1 for the 3 labels of task tone; give as many"),
    ({"labels": "shuffled"}, "recipe.labels: Input should be 'regular', 'symbol' or 'random'"),
    ({"sources": ["synthetic"]}, "recipe.sources: no rows in synthetic"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_a_recipe_that_cannot_be_followed_is_refused(world, recipe, words):
    with pytest.raises(SpecError) as caught:
        job(world, recipe)
    assert words in str(caught.value)


def test_a_custom_stage_names_its_own_field(world):
    view = {"kind": "labels", "labels": "symbol", "symbols": ["a"]}
    stages = [{"name": "a", "steps": 8, "mix": {"text": 1}, "view": view}]
    with pytest.raises(SpecError, match=r"recipe\.stages\[0\]\.view\.symbols: 1 for the 3 labels"):
        toy.resolved(*world, recipe={"name": "custom", "stages": stages}, steps=None)


def test_demonstrations_and_a_part_of_the_rows_do_not_go_together(world):
    view = {"kind": "labels", "demonstrations": {"most": 1}}
    stages = [{"name": "a", "steps": 8, "mix": {"text": 1}, "view": view, "fraction": 0.5}]
    with pytest.raises(SpecError, match=r"demonstrations come from all rows.*use fraction: 1"):
        toy.resolved(*world, recipe={"name": "custom", "stages": stages}, steps=None)


def test_what_labels_are_called_and_what_teaches_go_together(world, tmp_path):
    """A distilled recording is held against its transcript under the same names and demonstrations; misalignment is
    measured under the labels' own."""
    stage = {
        "name": "a", "steps": 4, "mix": {"speech": 1}, "objective": {"kind": "distillation"}, "measure": {"every": 2},
        "view": {"kind": "labels", "labels": "symbol", "demonstrations": {"least": 1, "most": 1}},
    }  # fmt: skip
    resolved, corpus = toy.resolved(*world, recipe={"name": "custom", "stages": [stage]}, steps=None)
    (plan,), (found,) = contexts(resolved, corpus)
    made_of = (Tokens(world[0]), Recordings(16000))
    make = training_examples(resolved, corpus, {"a": found}, *made_of)
    row = int(plan.row[0])
    heard, decode = make(resolved.stages[0], "speech", row, 1, 0), made_of[0].tokenizer.decode
    assert heard.twin is not None
    listened, read = (
        [line for line in decode(e.prompt).splitlines() if line.startswith(("- ", "Input: ", "Answer: "))]
        for e in (heard, heard.twin)
    )
    assert listened == read
    assert [line[:6] for line in read] == ["- alph", "- beta", "- gamm", "Input:", "Answer"]
    spoken = corpus.sources["speech"].rows[row].text
    assert spoken in decode(heard.twin.prompt)
    assert spoken not in decode(heard.prompt)
    assert heard.twin.answer == heard.answer
    assert heard.twin.wave is None
    for example in reference_examples(resolved, corpus, *made_of, resolved.stages[0]):
        assert decode(example.answer).strip() in toy.LABELS
        assert "- low: a deep voice" in decode(example.twin.prompt)
    events: list = []
    assert run(resolved, FolderStore(tmp_path), events.append, corpus=corpus, threads=1).outcome == "succeeded"
    assert [e["step"] for e in events if e["kind"] == "step" and "misalignment" in e] == [2, 4]


def test_knobs_that_say_nothing_do_not_make_another_job(world):
    plain, _ = job(world, {"labels": "regular"})
    said, _ = job(world, {"labels": "regular", "scope": "run", "pool_seed": 3, "symbols": ["x"]})
    assert plain.hash == said.hash
    assert LabelPermutation().labels == "random"
    assert job(world)[0].hash != plain.hash


@pytest.mark.parametrize(("scope", "menus"), [("batch", 1), ("example", 4)])
def test_the_examples_of_a_step_that_have_one_menu_share_it(world, scope, menus):
    """They are asked alike, so that a pack computes instruction and menu once."""
    resolved, corpus = job(world, {"scope": scope})
    (plan,), (found,) = contexts(resolved, corpus)
    stage, tokens = resolved.stages[0], Tokens(world[0])
    make = training_examples(resolved, corpus, {stage.name: found}, tokens, Recordings(16000))
    step = [make(stage, stage.sources[plan.source[i]], int(plan.row[i]), int(plan.view[i]), i) for i in range(8)]
    shared = groups(step, audio_id=tokens.audio_id)
    assert len(shared) >= menus
    menu = len(tokens.tokenizer.ids(answers.instruction(resolved.spec.tasks[0], "en")))
    assert all(group.length > menu for group in shared if len(group.members) > 1)
    if scope == "batch":
        assert [len(group.members) for group in shared] == [8]


def test_the_examples_of_a_step_are_grouped_by_permutation(world):
    """Every example of a step draws one of two permutations: those that drew the same share its menu, all in one
    micro-batch after the other, so that a prefix is computed once for each run of them."""
    resolved, corpus = job(world, {"pool_size": 2, "demonstrations": {"least": 1, "most": 2}})
    (plan,), (found,) = contexts(resolved, corpus)
    stage, tokens = resolved.stages[0], Tokens(world[0])
    make = training_examples(resolved, corpus, {stage.name: found}, tokens, Recordings(16000))
    step = [make(stage, stage.sources[plan.source[i]], int(plan.row[i]), int(plan.view[i]), i) for i in range(8)]
    drew = [names(resolved.spec.tasks[0], stage.view, 0, int(found.draw[i])).shown for i in range(8)]
    shared = groups(step, audio_id=tokens.audio_id)
    assert len(shared) == len({tuple(shown.items()) for shown in drew}) == 2
    for group in shared:
        assert len({tuple(drew[i].items()) for i in group.members}) == 1
        menu = tokens.tokenizer.ids(step[group.members[0]].asked)
        assert group.length > len(menu)
    (batches,) = assign([len(e) for e in step], shared, budget=10_000)
    assert batches == [[i for group in shared for i in group.members]]


PRESETS = sorted((Path(__file__).parent.parent / "suites" / "presets").glob("label-permutation*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=[p.stem for p in PRESETS])
def test_a_preset_plans_on_data_of_its_shape(path, tmp_path):
    """Where its data are not here, a few rows of the same tasks stand for them; the base is the tiny one."""
    given = {**read_yaml(path), "base": str(toy.TINY)}
    for folder, name in (("slue-voxceleb", "slue_sentiment"), ("slue-hvb", "slue_dialog_acts")):
        if name in given["tasks"]:
            labels = builtin_tasks()[name].labels
            (tmp_path / folder / "audio").mkdir(parents=True)
            for split in ("train", "dev", "test"):
                rows = [
                    {"id": f"{split}-{n}", "task": name, "language": "en", "split": split, "text": f"{split} {n}",
                     "label": labels[n % 3] if name == "slue_sentiment" else labels[n : n + 2], "duration_s": 1.0,
                     "audio": f"audio/{split}{n}.wav"} for n in range(9)
                ]  # fmt: skip
                for row in rows:
                    soundfile.write(tmp_path / folder / row["audio"], toy.wave(300, 1.0), 16000)
                (tmp_path / folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    copy = tmp_path / "preset.yaml"
    copy.write_text(yaml.safe_dump(given))
    read = Reader([tmp_path, path.parent.parent.parent])
    found = expand(load(copy), read)
    runs = [run for cell in found.cells for run in cell.runs]
    assert [cell.settings["labels"] for cell in found.cells] == ["regular", "symbol", "random"]
    assert len({run.hash for run in runs}) == len(runs)
    for resolved in runs:
        corpus = read(resolved.spec)
        plan = plan_stage(resolved, 0)
        made = context(resolved, 0, plan, corpus)
        assert {row.task for row in corpus.shown()} == {row.task for row in corpus.test.rows}
        assert made.row.shape == (len(plan), resolved.stages[0].view.demonstrations.most)
    told = estimate(runs[0], corpus)
    assert any("demonstrations are counted" in note for note in told.notes)
