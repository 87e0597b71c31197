"""The simple rows of a comparison: majority, linear probe on the frozen encoder, the untuned base.

Each gives prediction rows like any trained model, so that it stands in the same table under the same
statistics: a tuned model that does not beat them has learnt nothing that matters. All are deterministic, and
nothing in them is chosen on test data.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from trainer import answers
from trainer.evaluate import Row, predict, prediction
from trainer.manifest import Utterance
from trainer.spec import Decode, Task
from trainer.tokens import reference
from trainer.views import SPEECH, Recordings

C = 1.0
"""Inverse strength of the probe's L2 penalty: scikit-learn's default, for every task and size; not tuned."""
ITERATIONS = 1000
MOST_VALUES = 100
"""Values of an open slot that the probe can answer: the most frequent ones of training."""

Part = Any
"""What one classifier answers: a label, a label's presence, an intent, or the tuple of a slot's values (empty:
absent)."""
Features = Callable[[Sequence[Utterance]], np.ndarray]
"""(utterances) -> (utterances, width)."""


def majority(train: Iterable[Utterance], test: Iterable[Utterance], task: Task) -> list[Row]:
    """The same answer for every test utterance, from the labels of the training rows alone.

    label: the most frequent label. label_set: the most frequent whole set. json: the most frequent intent, and
    for each slot its most frequent value or absence, whichever is more frequent (what a probe would learn from
    constant features). text: nothing. Ties go to the first in menu order, then alphabetically.
    """
    rows = _of(train, task)
    if task.answer == "text":
        return [prediction(u, task, SPEECH, "") for u in _of(test, task)]
    parts = {name: _most_frequent(values, task) for name, values in parts_of(rows, task, whole_sets=True).items()}
    text = answers.render(_assembled(parts, task), task)
    return [prediction(u, task, SPEECH, text) for u in _of(test, task)]


def linear_probe(
    train: Sequence[Utterance], test: Sequence[Utterance], task: Task, features: Features
) -> list[Row]:
    """Multinomial logistic regression on frozen features, standardised by the training rows.

    label: one classifier. label_set: one per label; a row without any label gets its most probable one. json:
    one for the intent and one per slot, absence being a class; the values of an open slot are those seen in
    training, at most `MOST_VALUES`. Give the recordings that the compared cell had. ValueError for text answers
    and for no training rows.
    """
    if task.answer == "text":
        raise ValueError(f"task '{task.name}': a linear probe answers labels, not free text; leave its row out")
    train, test = _of(train, task), _of(test, task)
    x, y = features(train), parts_of(train, task)
    given = features(test)
    if task.answer == "label_set":
        labels = _set_answers(x, y, given, task)
    else:
        said = {name: classify(x, values, given) for name, values in y.items()}
        labels = [_assembled({name: column[i] for name, column in said.items()}, task) for i in range(len(test))]
    return [prediction(u, task, SPEECH, _written(label, task)) for u, label in zip(test, labels, strict=True)]


def untuned(model, test: Sequence[Utterance], task: Task, decode: Decode, recordings: Recordings) -> list[Row]:
    """The base as loaded, adapters off, with the task's own instruction and no example: zero-shot."""
    with model.base_only():
        return predict(model, _of(test, task), {task.name: task}, SPEECH, decode, recordings)


# ---------------------------------------------------------------------------------------------------- features


def pooled_features(model, recordings: Recordings) -> Features:
    """Mean and standard deviation over time of the base encoder's states, before the projector: width 2 x
    encoder width. Comes from the model's feature cache where a job has used the same recordings. LengthError
    for a recording longer than the base hears."""

    def pooled(utterance: Utterance) -> np.ndarray:
        wave = recordings.wave(utterance)
        model.tokens.audio_tokens(len(wave), name=utterance.id)  # only to refuse what would be cut
        states = model.audio_states([wave])[0].detach().float().cpu().numpy()
        return np.concatenate([states.mean(0), states.std(0)]).astype(np.float64)

    def features(utterances: Sequence[Utterance]) -> np.ndarray:
        with model.base_only():
            return np.stack([pooled(u) for u in utterances])

    return features


# --------------------------------------------------------------------------------------------------- classifier


def classify(x: np.ndarray, y: Sequence[Part], given: np.ndarray) -> list[Part]:
    """Classes of `given` (m, width) by logistic regression on x (n, width) with classes y; a single class needs
    no features."""
    classes = sorted(set(y), key=repr)
    if len(classes) == 1:
        return classes * len(given)
    scaler, model = _fitted(x, [classes.index(value) for value in y])
    return [classes[k] for k in model.predict(scaler.transform(given))]


def _fitted(x: np.ndarray, y: Sequence[int]) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=C, max_iter=ITERATIONS)
    # One thread: the same bits whatever the machine's cores, and 40 times quicker than threads that wait for a
    # busy core at every one of many small products.
    with warnings.catch_warnings(), threadpool_limits(1):
        # The last digits of the weights change no class.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(x), y)
    return scaler, model


def _set_answers(x: np.ndarray, y: Mapping[str, Sequence[Part]], given: np.ndarray, task: Task) -> list[list[str]]:
    chance = np.zeros((len(given), len(y)))
    for k, present in enumerate(y.values()):
        if len(set(present)) == 1:
            chance[:, k] = float(present[0])
        else:
            scaler, model = _fitted(x, [int(p) for p in present])
            chance[:, k] = model.predict_proba(scaler.transform(given))[:, 1]
    names = list(y)
    return [[n for n, p in zip(names, row, strict=True) if p > 0.5] or [names[int(row.argmax())]] for row in chance]


# ------------------------------------------------------------------------------------------------ answer parts


def parts_of(rows: Sequence[Utterance], task: Task, *, whole_sets: bool = False) -> dict[str, list[Part]]:
    """A row's answer cut into what separate classifiers can say: {part: [value per row]}.

    label: {'label': names}. label_set: presence per label, or with `whole_sets` {'label': tuples}. json: 'intent'
    where there is one, and per slot the tuple of its values in the row. ValueError when there are no rows.
    """
    if not rows:
        raise ValueError(f"task '{task.name}': no training rows, so there is no baseline to learn")
    labels: list[Any] = [reference(u, task) for u in rows]
    if task.answer == "label":
        return {"label": labels}
    if task.answer == "label_set":
        if whole_sets:
            return {"label": [tuple(answers.in_menu_order(given, task)) for given in labels]}
        return {name: [name in given for given in labels] for name in task.labels or []}
    parts: dict[str, list[Part]] = {}
    intents = [given.get("intent") for given in labels]
    if any(intent is not None for intent in intents):
        parts["intent"] = intents
    for slot, closed in (task.slots or {}).items():
        values = [tuple(s["value"] for s in given.get("slots") or [] if s["type"] == slot) for given in labels]
        if closed is None:
            most = {value for value, _ in Counter(sorted(v for v in values if v)).most_common(MOST_VALUES)}
            values = [value if value in most else () for value in values]
        parts[f"slot {slot}"] = values
    return parts


def _assembled(parts: Mapping[str, Part], task: Task) -> answers.Label:
    """The label that the parts make up; slots in schema order."""
    if task.answer != "json":
        value = parts["label"]
        return list(value) if task.answer == "label_set" else value
    slots = [{"type": s, "value": v} for s in task.slots or {} for v in parts.get(f"slot {s}", ())]
    return {"intent": parts.get("intent"), "slots": slots}


def _written(label: answers.Label, task: Task) -> str:
    """The answer string; an intent that training rows lack makes no valid answer, and counts as invalid."""
    try:
        return answers.render(label, task)
    except ValueError:
        return ""


def _most_frequent(values: Sequence[Part], task: Task) -> Part:
    menu = [*(task.labels or []), *(task.intents or [])]

    def place(value: Part) -> tuple:
        return (-counts[value], menu.index(value) if value in menu else len(menu), repr(value))

    counts = Counter(values)
    return min(counts, key=place)


def _of(rows: Iterable[Utterance], task: Task) -> list[Utterance]:
    return [u for u in rows if u.task == task.name]
