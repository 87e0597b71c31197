"""Other names for a task's labels (light, pure): symbols, or a permutation of names (arXiv 2505.07731, section 3).

With labels C, definitions d and a permutation π the prompt shows "π(c): d(c)", and demonstrations and target are mapped
by π too. So a draw is a task of its own, whose labels are the shown names in the order of the real ones: menu, answer
and reader of `trainer.answers` then agree, and sets of labels follow the menu that is shown.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from trainer.bases import pin_base
from trainer.corpus import Corpus
from trainer.fields import Problem, SpecError
from trainer.rng import permutation, word
from trainer.spec import JobSpec, Task, listed
from trainer.spec.evaluate import ShownLabels
from trainer.stage import Labels, Naming, Stage
from trainer.strategies import Baseline
from trainer.utterance import Label, Utterance

GREEK = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
]  # fmt: skip
ALL_UP_TO, OTHERWISE = 4, 10
"""`pool_size: auto`: all permutations of up to four labels, ten of more."""
LISTED_UP_TO = 6
"""Labels whose permutations (720) are listed to choose a pool; of more they are drawn."""


@dataclass(frozen=True, slots=True)
class Names:
    """One draw: the names that a task's labels go by."""

    task: Task
    """The task as it is shown."""
    shown: dict[str, str]
    """Shown name of each real one."""

    @property
    def permuted(self) -> bool:
        """Whether labels go by each other's names."""
        return bool(self.shown) and set(self.shown) == set(self.shown.values())

    def label(self, label: Label) -> Label:
        """A label under the shown names."""
        return _mapped(label, self.shown)

    def back(self, label: Label) -> Label:
        """A label read from an answer under the shown names, under its real ones."""
        return _mapped(label, {shown: real for real, shown in self.shown.items()})

    def utterance(self, utterance: Utterance) -> Utterance:
        """The utterance with its label under the shown names."""
        return replace(utterance, label=self.label(utterance.label))


def names(task: Task, naming: Naming, seed: int, draw: int) -> Names:
    """The names of draw number `draw` of a job's `seed`; pure. `problems` has said what does not fit."""
    if naming.labels == "regular":
        return Names(task, {})
    real = classes(task)
    given = real if naming.labels == "random" and naming.names == "real" else symbols(naming, len(real))
    order = range(len(real)) if naming.labels == "symbol" else drawn(naming, len(real), seed, task.name, draw)
    return _shown(task, {name: given[k] for name, k in zip(real, order, strict=True)})


def names_at_test(task: Task, labels: ShownLabels, given: list[str] | None, utterance: str) -> Names:
    """The names under which an utterance is tested (`evaluate.labels`); pure. `given`: symbols; `utterance`: its id,
    which alone draws its permutation, so that every job and condition puts it alike. `problems` has said what does not
    fit."""
    if labels != "permuted":
        return names(task, Naming(labels=labels, symbols=given), 0, 0)
    real = classes(task)
    among = moved(len(real))
    order = among[word(0, f"evaluate.labels/{task.name}/{utterance}", 0) % len(among)]
    return _shown(task, {name: real[k] for name, k in zip(real, order, strict=True)})


def moved(count: int) -> list[tuple[int, ...]]:
    """At most ten permutations that leave no label its name: what follows a definition then never is the name."""
    return [p for p in pool(count, OTHERWISE, False, 0) if not any(a == b for a, b in enumerate(p))]


def _shown(task: Task, shown: dict[str, str]) -> Names:
    definitions = {name: text for name, text in task.definitions.items() if name not in shown}
    definitions |= {shown[name]: text for name, text in task.definitions.items() if name in shown}
    field = "intents" if task.answer == "json" else "labels"
    return Names(task.model_copy(update={field: list(shown.values()), "definitions": definitions}), shown)


def classes(task: Task) -> list[str]:
    """The names that can be replaced: labels, or the intents of a JSON answer; none where the answer is open."""
    return list((task.intents if task.answer == "json" else task.labels) or [])


def symbols(naming: Naming, count: int) -> list[str]:
    """The first `count` symbols."""
    if naming.symbols is not None:
        return naming.symbols[:count]
    rounds = -(-count // len(GREEK))
    return [letter + (str(n) if n else "") for n in range(rounds) for letter in GREEK][:count]


def drawn(naming: Naming, count: int, seed: int, task: str, draw: int) -> tuple[int, ...]:
    """The permutation of range(`count`) that a draw gives: label k goes by name number result[k]."""
    if naming.pool_size == "fresh":
        for attempt in itertools.count():
            found = tuple(permutation(seed, f"labels/{task}/{draw}/{attempt}", count).tolist())
            if naming.identity or found != tuple(range(count)):
                return found
    among = pool(count, naming.pool_size, naming.identity, naming.pool_seed)
    return among[word(seed, f"labels/{task}", draw) % len(among)]


@cache
def pool(count: int, size: int | str, identity: bool, seed: int) -> tuple[tuple[int, ...], ...]:
    """`size` different permutations of range(`count`), or all there are: those without a fixed point first."""
    if size == "auto":
        size = math.factorial(count) if count <= ALL_UP_TO else OTHERWISE
    assert isinstance(size, int)
    if count <= LISTED_UP_TO:
        every = list(itertools.permutations(range(count)))
        shuffled = [every[k] for k in permutation(seed, f"labels/pool/{count}", len(every))]
        fixed = {p: sum(a == b for a, b in enumerate(p)) for p in shuffled}
        ranked = sorted(shuffled, key=lambda p: (fixed[p] > 0, fixed[p] == count))
        return tuple(ranked[: min(size, len(every) - (not identity))])
    found: dict[tuple[int, ...], None] = {}
    for attempt in itertools.count():
        if len(found) == size:
            break
        p = permutation(seed, f"labels/pool/{count}/{attempt}", count).tolist()
        if not any(a == b for a, b in enumerate(p)):
            found[tuple(p)] = None
    return tuple(found)


def refuse_names(stages: Sequence[Stage], corpus: Corpus, *, custom: bool) -> None:
    """SpecError for tasks whose labels cannot go by other names, or whose demonstrations cannot be looked up.
    `custom`: the recipe is the stages themselves."""
    found: list[Problem] = []
    for n, stage in enumerate(stages):
        if not isinstance(view := stage.view, Labels):
            continue
        at = f"recipe.stages[{n}].view" if custom else "recipe"
        shown, mute = {}, None
        for row in (u for source in stage.mix for u in corpus.sources[source].rows if stage.shows(u.task)):
            shown[row.task] = None
            mute = mute if row.text else mute or row.id
        for name in shown:
            found += problems(corpus.tasks[name], view, at)
        if view.demonstrations.most and view.demonstrations.retriever != "random" and mute:
            message = f"looks sentences up by the query's, and utterance {mute} has no transcript; use random"
            found.append(Problem(f"{at}.demonstrations.retriever", view.demonstrations.retriever, message))
    if found:
        raise SpecError(found)


def refuse_conditions(spec: JobSpec, corpus: Corpus) -> None:
    """SpecError for conditions of the test (`evaluate.labels`, `evaluate.demos`) that its rows do not allow."""
    evaluate, found = spec.evaluate, []
    assert corpus.test is not None, "resolve() refuses a job without a test set"
    asked = {one.query_text for one in evaluate.conditions().values()}
    looked = {"gold": ("transcript", "text"), "asr": ("recording", "audio")}
    for by, (what, field) in looked.items():
        lacking = next((u.id for u in corpus.test.rows if not getattr(u, field)), None) if by in asked else None
        if lacking is not None:
            message = f"needs a {what} of every test utterance, and {lacking} has none; use retriever: random"
            found.append(Problem("evaluate.demos.query_text", by, message))
    if "asr" in asked and spec.tuning.method != "lora" and not isinstance(spec.recipe, Baseline):
        message = f"the base itself must be left to transcribe, which method: {spec.tuning.method} does not; use lora"
        found.append(Problem("evaluate.demos.query_text", "asr", message))
    for labels in listed(evaluate.labels):
        naming = Naming(labels="random" if labels == "permuted" else labels, symbols=evaluate.symbols)
        for name in dict.fromkeys(u.task for u in corpus.test.rows):
            found += problems(corpus.tasks[name], naming, "evaluate", labels)
    if found:
        raise SpecError(found)


def pin_encoder(stage: Stage) -> Stage:
    """The stage with the sentence encoder of its demonstrations pinned, where there is one."""
    if not isinstance(stage.view, Labels) or not (ask := stage.view.demonstrations).encoder:
        return stage
    pinned = ask.model_copy(update={"revision": pin_base(ask.retriever, ask.revision)})
    return stage.model_copy(update={"view": stage.view.model_copy(update={"demonstrations": pinned})})


def problems(task: Task, naming: Naming, recipe: str = "recipe", said: str | None = None) -> list[Problem]:
    """What keeps a task's labels from going by other names; `recipe`: where the naming stands in the spec, and `said`
    what is said there, where that has another name."""
    if naming.labels == "regular":
        return []
    at, mode, real = f"tasks.{task.name}", f"labels: {said or naming.labels}", classes(task)
    if not real:
        form = "json without a closed set of intents" if task.answer == "json" else task.answer
        message = f"{mode} replaces the names of labels or of a closed set of intents, and {form} has none; "
        return [Problem(f"{at}.answer", task.answer, f"{message}leave the task's rows out, or use labels: regular")]
    found = []
    if len(real) < 2:
        found.append(Problem(at, None, f"{mode} needs two labels at least; use labels: regular"))
    if not task.menu:
        message = f"{mode} says the names in the instruction; say menu: true"
        found.append(Problem(f"{at}.menu", False, message))
    bare = [name for name in real if name not in task.definitions]
    if naming.labels == "random" and bare:
        message = f"'{bare[0]}' has none, so nothing would say what its name of the day stands for; define every label"
        found.append(Problem(f"{at}.definitions", None, message))
    by_symbol = naming.labels == "symbol" or naming.names == "symbols"
    texts = [(f"{at}.instruction.{key}", text) for key, text in task.instruction.items()]
    if by_symbol:
        found += _unfit_symbols(task, naming, real, f"{recipe}.symbols")
        texts += [(f"{at}.definitions.{name}", task.definitions[name]) for name in real if name in task.definitions]
    for field, text in texts:
        said = next((n for n in real if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", text, re.IGNORECASE)), None)
        if said is not None:
            message = f"says the label '{said}', which {mode} gives another name; reword it (the menu lists the names)"
            found.append(Problem(field, text, message))
    return found


def _unfit_symbols(task: Task, naming: Naming, real: list[str], at: str) -> list[Problem]:
    given = symbols(naming, len(real))
    if len(given) < len(real):
        return [Problem(at, None, f"{len(given)} for the {len(real)} labels of task {task.name}; give as many")]
    if len(set(given)) < len(given):
        return [Problem(at, None, "symbols repeat; each stands for one label")]
    taken = {name.casefold() for name in (*real, *(task.slots or {}))}
    for symbol in given:
        if symbol.casefold() in taken:
            return [Problem(at, symbol, f"is a name of task {task.name} too; give symbols of your own")]
        if symbol != symbol.strip() or not symbol or (task.answer == "label_set" and "," in symbol):
            return [Problem(at, symbol, "is no answer: no spaces around it, no comma where labels are listed")]
    return []


def _mapped(label: Label, to: dict[str, str]) -> Label:
    if not to or label is None:
        return label
    if isinstance(label, dict):
        intent = label.get("intent")
        return label if intent is None else {**label, "intent": to.get(intent.strip(), intent)}
    if isinstance(label, list):
        return [to.get(name.strip(), name) for name in label]
    return to.get(label.strip(), label)
