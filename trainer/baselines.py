"""How the baselines answer: the majority, a linear probe on the frozen encoder, the untuned base.

Each gives prediction rows like any trained model, so that it stands in the same table under the same
statistics: a tuned model that does not beat them has learnt nothing that matters. All are deterministic, and
nothing in them is chosen on test data.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from trainer import answers
from trainer.corpus import Corpus
from trainer.evaluate import Between, predict
from trainer.majority import Part, assembled, majority, of_task, parts_of
from trainer.manifest import Utterance
from trainer.predictions import SPEECH, Row, prediction
from trainer.resolve import Resolved
from trainer.spec import Decode, Task
from trainer.strategies import Baseline, LinearProbe, Majority
from trainer.views import Recordings

C = 1.0
"""Inverse strength of the probe's L2 penalty: scikit-learn's default, for every task and size; not tuned."""
ITERATIONS = 1000
Features = Callable[[Sequence[Utterance]], np.ndarray]
"""(utterances) -> (utterances, width)."""


def answered(
    recipe: Baseline,
    model,
    train: Sequence[Utterance],
    test: Sequence[Utterance],
    tasks: Mapping[str, Task],
    modality: str,
    decode: Decode,
    recordings: Recordings,
    between: Between = lambda done: None,
    **options,
) -> list[Row]:
    """What a baseline answers, in the order of `test`. `train`: the rows that its recipe learns from; `between`: as of
    `predict`."""
    if not isinstance(recipe, Majority | LinearProbe):
        with model.base_only():
            return predict(model, test, tasks, modality, decode, recordings, between, **options)
    features, found = pooled_features(model, recordings, between), {}
    for task in {u.task: tasks[u.task] for u in test}.values():
        probes = isinstance(recipe, LinearProbe)
        rows = linear_probe(train, test, task, features) if probes else majority(train, test, task, modality)
        found.update({row["utterance"]: row for row in rows})
        between(len(rows))
    return [found[u.id] for u in test]


def answers_of(
    resolved: Resolved, corpus: Corpus, model, test: Sequence[Utterance], tasks: Mapping[str, Task], *asked, **options
) -> list[Row]:
    """What a job answers: its baseline, where its recipe is one, else the model as it is now. `asked`: as of
    `predict`, from `modality` on."""
    recipe = resolved.spec.recipe
    if not isinstance(recipe, Baseline):
        return predict(model, test, tasks, *asked, **options)
    train = [u for name in resolved.sources for u in corpus.sources[name].rows]
    return answered(recipe, model, train, test, tasks, *asked, **options)


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
    train, test = of_task(train, task), of_task(test, task)
    x, y = features(train), parts_of(train, task)
    given = features(test)
    if task.answer == "label_set":
        labels = _set_answers(x, y, given, task)
    else:
        said = {name: classify(x, values, given) for name, values in y.items()}
        labels = [assembled({name: column[i] for name, column in said.items()}, task) for i in range(len(test))]
    return [prediction(u, task, SPEECH, _written(label, task)) for u, label in zip(test, labels, strict=True)]


# ---------------------------------------------------------------------------------------------------- features


def pooled_features(model, recordings: Recordings, between: Between = lambda done: None) -> Features:
    """Mean and standard deviation over time of the base encoder's states, before the projector: width 2 x
    encoder width. Comes from the model's feature cache where a job has used the same recordings. LengthError
    for a recording longer than the base hears."""

    def pooled(utterance: Utterance) -> np.ndarray:
        wave = recordings.wave(utterance)
        model.tokens.audio_tokens(len(wave), name=utterance.id)  # only to refuse what would be cut
        states = model.audio_states([wave])[0].detach().float().cpu().numpy()
        between(0)
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


def _written(label: answers.Label, task: Task) -> str:
    """The answer string; an intent that training rows lack makes no valid answer, and counts as invalid."""
    try:
        return answers.render(label, task)
    except ValueError:
        return ""
