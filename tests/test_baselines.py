"""Baselines answer as documented, from training rows alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from trainer import majority as counting
from trainer.baselines import answered, classify, linear_probe, pooled_features
from trainer.evaluate import predict
from trainer.families import load as load_model
from trainer.majority import majority, parts_of
from trainer.manifest import Utterance
from trainer.metrics import score
from trainer.rng import philox
from trainer.spec import Decode, Task, Tuning
from trainer.strategies import Untuned
from trainer.tokens import LengthError
from trainer.views import SPEECH, Recordings

TINY = Path(__file__).parents[1] / "models" / "tiny"
LABEL = Task(name="t", instruction={"en": "Which?"}, answer="label", labels=["b", "a", "c"])
SET = Task(name="t", instruction={"en": "Which?"}, answer="label_set", labels=["b", "a", "c"])
TEXT = Task(name="t", instruction={"en": "Write."}, answer="text")
ORDER = Task(
    name="t", instruction={"en": "Order?"}, answer="json", intents=["order", "stop"],
    slots={"size": ["small", "large"], "drink": None},
)  # fmt: skip


def _rows(labels, prefix: str = "u") -> list[Utterance]:
    return [
        Utterance(f"{prefix}{i}", "t", "en", "train", label=label, audio=f"{prefix}{i}.wav", speaker=f"s{i % 3}")
        for i, label in enumerate(labels)
    ]


def _order(intent: str = "order", **slots: str) -> dict:
    return {"intent": intent, "slots": [{"type": k, "value": v} for k, v in slots.items()]}


def _noise(n: int, width: int, stream: str) -> np.ndarray:
    return (philox(0, stream, n * width) / 2**64 - 0.5).reshape(n, width)


def _features(codes: dict[str, np.ndarray]):
    """Features that are looked up by utterance id."""
    return lambda utterances: np.stack([codes[u.id] for u in utterances])


# ---------------------------------------------------------------------------------------------------- majority


def test_majority_label_and_its_score():
    rows = majority(_rows(["a", "c", "a", "b"]), _rows(["a", "b", "c", "a", "a"], "test"), LABEL)
    assert {r["text"] for r in rows} == {"a"}
    assert score(rows)["accuracy"] == pytest.approx(3 / 5)
    assert [r["utterance"] for r in rows] == [f"test{i}" for i in range(5)]
    assert all(r["valid"] and r["modality"] == SPEECH for r in rows)


def test_majority_ties_go_to_menu_order_whatever_the_row_order():
    for labels in (["a", "b"], ["b", "a"]):
        assert majority(_rows(labels), _rows(["a"]), LABEL)[0]["text"] == "b"


def test_majority_set_is_a_whole_set():
    train = _rows([["a"], ["c", "b"], ["b", "c"], ["a", "c"]])
    assert majority(train, _rows([["a"]]), SET)[0]["parsed"] == ["b", "c"]


def test_majority_json_is_most_frequent_part_by_part():
    train = _rows([_order(size="small", drink="tea"), _order(drink="tea"), _order("stop"), _order(drink="mocha")])
    row = majority(train, _rows([_order(drink="tea")]), ORDER)[0]
    # size is absent in 3 of 4 rows, drink is tea in 2 of 4 (absent in 1)
    assert json.loads(row["text"]) == {"intent": "order", "slots": {"drink": "tea"}}
    assert row["counts"]["exact_match"] == [1.0, 1.0]


def test_majority_text_is_empty():
    row = majority(_rows(["x"]), [Utterance("u", "t", "en", "test", text="two words")], TEXT)[0]
    assert row["text"] == ""
    assert row["counts"]["wer"] == [2.0, 2.0]


def test_rows_of_other_tasks_are_left_out_and_none_is_an_error():
    other = [Utterance("o", "other", "en", "train", text="x", label="c")]
    assert len(majority(_rows(["a"]), [*other, *_rows(["a"])], LABEL)) == 1
    with pytest.raises(ValueError, match="task 't': no training rows"):
        majority(other, _rows(["a"]), LABEL)


# ------------------------------------------------------------------------------------------------------- probe


def test_probe_learns_what_is_linear_and_standardises():
    labels = ["a", "b", "c"] * 30
    centre = {"a": [9, 0], "b": [0, 9], "c": [9, 9]}
    rows, test = _rows(labels), _rows(["c", "a", "b"] * 5, "test")
    codes = {u.id: np.array(centre[str(u.label)]) + _noise(1, 2, u.id)[0] for u in [*rows, *test]}
    assert score(linear_probe(rows, test, LABEL, _features(codes)))["accuracy"] == 1.0
    # Units of a feature mean nothing.
    scaled = {name: code * np.array([1e4, 1e-4]) for name, code in codes.items()}
    again = linear_probe(rows, test, LABEL, _features(scaled))
    assert [r["text"] for r in again] == ["c", "a", "b"] * 5


def test_an_answer_does_not_depend_on_the_other_test_rows():
    rows, test = _rows(["a", "b", "c"] * 10), _rows(["a"] * 9, "test")
    codes = {u.id: _noise(1, 4, u.id)[0] for u in [*rows, *test]}
    together = [r["text"] for r in linear_probe(rows, test, LABEL, _features(codes))]
    alone = [linear_probe(rows, [u], LABEL, _features(codes))[0]["text"] for u in test]
    assert together == alone
    assert len(set(together)) > 1


def test_probe_of_sets_gives_each_row_at_least_one_label():
    sets = [["b"], ["b", "a"], ["a"], ["c"]] * 15
    bits = {u.id: np.array([float(n in (u.label or [])) for n in ("b", "a", "c")]) for u in _rows(sets)}
    test = _rows([["b", "a"], ["c"], ["a"]], "test")
    bits |= {"test0": np.array([1.0, 1, 0]), "test1": np.array([0.0, 0, 1]), "test2": np.array([0.3, 0.35, 0.3])}
    said = linear_probe(_rows(sets), test, SET, _features(bits))
    assert [r["parsed"] for r in said[:2]] == [["b", "a"], ["c"]]
    assert len(said[2]["parsed"]) >= 1


def test_probe_of_json_answers_each_slot_and_absence():
    labels = [_order(size="small", drink="tea"), _order(drink="mocha"), _order("stop"), _order(size="large")] * 12
    rows, test = _rows(labels), _rows(labels[:4], "test")
    codes = {u.id: np.eye(4)[i % 4] + 0.1 * _noise(1, 4, u.id)[0] for i, u in enumerate(rows)}
    codes |= {u.id: np.eye(4)[i] for i, u in enumerate(test)}
    said = linear_probe(rows, test, ORDER, _features(codes))
    assert score(said)["exact_match"] == 1.0
    assert json.loads(said[0]["text"]) == {"intent": "order", "slots": {"size": "small", "drink": "tea"}}
    assert json.loads(said[2]["text"]) == {"intent": "stop", "slots": {}}


def test_rare_values_of_an_open_slot_count_as_absent(monkeypatch):
    monkeypatch.setattr(counting, "MOST_VALUES", 1)
    rows = _rows([_order(drink="tea", size="small"), _order(drink="tea"), _order(drink="mocha", size="large")])
    parts = parts_of(rows, ORDER)
    assert parts["slot drink"] == [("tea",), ("tea",), ()]
    assert parts["slot size"] == [("small",), (), ("large",)]


def test_one_class_needs_no_features():
    assert classify(np.zeros((3, 2)), ["a", "a", "a"], np.ones((2, 2))) == ["a", "a"]


def test_text_has_no_probe():
    with pytest.raises(ValueError, match="free text"):
        linear_probe(_rows(["x"]), _rows(["x"]), TEXT, _features({}))


# -------------------------------------------------------------------------------------- with the tiny base


@pytest.fixture(scope="module")
def base():
    return load_model(TINY)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i, seconds in enumerate((0.6, 0.8, 1.0, 18.0)):
        wave = 0.1 * _noise(int(16000 * seconds), 1, f"clip{i}")[:, 0]
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        rows.append(Utterance(f"c{i}", "t", "en", "test", label="abc"[i % 3], audio=str(folder / f"{i}.wav")))
    return rows


def test_features_are_mean_and_deviation_of_encoder_states(base, clips):
    recordings = Recordings(16000)
    pooled = pooled_features(base, recordings)(clips[:2])
    states = base.encode([recordings.wave(clips[1])])[0].detach().numpy()
    assert pooled.shape == (2, 2 * states.shape[1])
    np.testing.assert_allclose(pooled[1, : states.shape[1]], states.mean(0), atol=1e-5)
    np.testing.assert_allclose(pooled[1, states.shape[1] :], states.std(0), atol=1e-5)


def test_a_recording_longer_than_the_base_hears_is_refused_not_cut(base, clips):
    with pytest.raises(LengthError, match="c3"):
        pooled_features(base, Recordings(16000))(clips)


def test_untuned_is_the_base_also_while_an_adapter_is_on(base, clips):
    import torch

    recordings, decode = Recordings(16000), Decode(max_new_tokens=6)
    asked = (Untuned(), base, [], clips[:3], {"t": LABEL}, SPEECH, decode, recordings)
    plain = answered(*asked)
    base.attach(Tuning(rank=4, encoder="lora"), seed=0)
    try:
        with torch.no_grad():
            for parameter in base.trained.values():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        tuned = predict(base, clips[:3], {"t": LABEL}, SPEECH, decode, recordings)
        again = answered(*asked)
    finally:
        base.detach()
    assert again == plain
    assert [r["text"] for r in tuned] != [r["text"] for r in plain]
