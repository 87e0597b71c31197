"""`--tiny`: a job or study in small, on the base and the data that come with this repository, without a download.

It keeps recipe, objectives, stages, ways of answering and controls; base, data, their tasks and lengths are others, and
of a study's grid every value is tried once. So it shows that a spec runs, and nothing about what it is for. What is
replaced is decided here alone, and all of it is said: the lines are what differs between the two specs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from attune.places import DATA
from trainer.corpus import Reader
from trainer.fields import SpecError, problem
from trainer.formats import FORMATS
from trainer.metrics import METRICS
from trainer.resolve import resolve
from trainer.spec import JobSpec, builtin_tasks, read_yaml
from trainer.strategies import STRATEGIES, Baseline, Custom
from trainer.study import StudySpec, expand, parse
from trainer.suite import Suite

ROOT = Path(__file__).resolve().parents[1]
BASE, FAMILY = "models/tiny", "qwen2_audio"
FORMS = ("label", "json", "label_set", "text")
"""Answer forms that `data/tiny` has, each in a folder of its own; and one with rows of all, also in dev and test."""
MIXED = "mixed"
SPLITS = {
    "evaluate.on": "test", "evaluate.dev": "dev", "evaluate.guards": "test", "source.data": "source",
    "data.extra_text": "extra",
}  # fmt: skip
"""Of a reference; train of the others. `source` and, of several tests, `source_test` are English, the rest Arabic."""
LANGUAGES = {"language": "ar", "source.language": "en"}

BATCH, STEPS, OWN_STEPS = 8, (4, 8, 16, 32, 64, 128, 256), 2
"""Examples of a step; steps of the job, as few of these as its recipe accepts; of a stage that says its own length."""
TEST, ANSWER = 8, 32
"""Utterances that are scored, tokens of an answer, at most."""
MOST = {"data.speech_per_label": 4, "data.speech_rows": 16, "data.text_rows": 16}
"""Rows that may be asked for."""

LEFT_OUT = ("revision", "family", "encoder_window", "precision", "resources", "tasks", "epochs", "steps", "init_from")
"""Of other bases, data, machines and lengths."""

Json = dict[str, Any]
Rule = Callable[[Any], Any]
"""A field's value, and what it becomes."""


def option(sub: argparse.ArgumentParser) -> None:
    """`--tiny`."""
    sub.add_argument("--tiny", action="store_true", help="in small: tiny base, data and lengths; says which")


def read(path: Path, *, small: bool) -> tuple[Json, JobSpec | StudySpec | Suite]:
    """A spec file as it stands, or in small, with what that has replaced on stderr; and what it means."""
    data = read_yaml(path)
    meant = parse(data)
    if not small:
        return data, meant
    if isinstance(meant, Suite):
        raise problem("suite", "--tiny takes a job or a study; give one of the suite's jobs")
    made = tiny(data)
    for line in differences(data, made):
        print(f"tiny: {line}", file=sys.stderr)
    return made, parse(made)


def written(spec: Json, out: str) -> Path:
    """The spec in small as a file beside what its run leaves, for the trainer to read."""
    if "://" in out:
        raise problem("--out", "with --tiny the spec is written there too: give a folder", out)
    path = Path(out) / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def tiny(spec: Mapping[str, Any]) -> Json:
    """The job or study in small. SpecError where it cannot be made to run, as of the spec itself."""
    if not (ROOT / BASE).is_dir() or not (ROOT / "data" / "tiny").is_dir():
        raise problem("--tiny", f"{BASE} and data/tiny come with a clone of the repository, and {ROOT} has them not")
    reader, refused = Reader([ROOT]), problem("--tiny", "nothing was tried")
    for trained, tested in _forms(spec):
        small = _small(spec, trained, tested)
        for lengths in _lengths(spec):
            try:
                _expand({**small, **lengths}, reader)
                return {**small, **lengths}
            except SpecError as error:
                refused = error
    raise refused


def _lengths(spec: Mapping[str, Any]) -> Iterator[Json]:
    """Steps and batches to try, the cheapest first; larger batches for objectives with groups in them."""
    name = _recipe(spec).get("name")
    strategy = next((s for s in STRATEGIES if s.model_fields["name"].default == name), None)
    own = strategy is not None and issubclass(strategy, Baseline | Custom)
    given = spec.get("global_batch", JobSpec.model_fields["global_batch"].default)
    for batch in dict.fromkeys((min(BATCH, given), given)):
        for steps in [None] if own else STEPS:
            yield {"global_batch": batch} | ({} if steps is None else {"steps": steps})


def _expand(spec: Json, reader: Reader) -> None:
    meant = parse(spec)
    if isinstance(meant, StudySpec):
        expand(meant, reader)
    elif isinstance(meant, JobSpec):
        resolve(meant, reader(meant))


# ---- what is replaced


def _small(spec: Mapping[str, Any], trained: str, tested: str) -> Json:
    rules = _rules("study" in spec, trained, tested)
    made = {key: value for key, value in spec.items() if key not in (*LEFT_OUT, "grid", "also")}
    for title in {"name", "study"} & made.keys():
        made[title] = f"{made[title]} tiny"
    for path, rule in rules.items():
        made = _changed(made, path.split("."), rule)
    if trained == MIXED:  # its rows are of every task, which no folder's task.yaml says
        made["tasks"] = [read_yaml(ROOT / "data" / "tiny" / form / "task.yaml") for form in FORMS]
    made["recipe"] = _few(spec.get("recipe", "auto"))
    made["evaluate"] = _evaluation(_few(made.get("evaluate") or {}), rules["evaluate.on"](""))
    if "study" in spec:  # its cells share one encoder, which no cell may settle for itself
        made["tuning"] = {"encoder": "frozen", **made.get("tuning", {})}
        made |= _each_once(spec, rules)
    return made


def _changed(table: Mapping[str, Any], path: list[str], rule: Rule) -> Json:
    head, *rest = path
    if table.get(head) is None or (rest and not isinstance(table[head], Mapping)):
        return dict(table)
    return {**table, head: _changed(table[head], rest, rule) if rest else rule(table[head])}


def _rules(study: bool, trained: str, tested: str) -> dict[str, Rule]:
    """What becomes of a field's value, by dotted path."""

    def data(path: str) -> Rule:
        one = FORMS[0] if tested == MIXED else tested
        form = tested if path.startswith("evaluate.") else trained
        if form == MIXED and path in SPLITS and path not in ("evaluate.on", "evaluate.dev"):
            form = one
        also = [f"{_here(f'data/tiny/{one}')}:source_test"] if path == "evaluate.on" else []
        stand_in = f"{_here(f'data/tiny/{form}')}:{SPLITS.get(path, 'train')}"
        return lambda value: [stand_in, *also][: max(1, len(value))] if isinstance(value, list) else stand_in

    def at_most(most: int) -> Rule:
        return lambda value: min(value, most) if isinstance(value, int) else value

    known = FORMATS[FAMILY].TARGETS
    return {
        **{path: data(path) for path in DATA},
        **{path: lambda value, said=said: said for path, said in LANGUAGES.items()},
        **{path: at_most(most) for path, most in MOST.items()},
        "base": lambda value: _here(BASE),
        "tuning.targets": lambda value: value if set(value) <= set(known) else "auto",
        "tuning.encoder": lambda value: "frozen" if value == "auto" and study else value,
    }


def _forms(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the training and the test data may be, the likeliest first: of the forms of the first and of the last task
    that the spec names, where it names several perhaps all forms mixed; else of one that the main metric counts."""
    known = {name: task.answer for name, task in builtin_tasks().items()}
    named = [t.get("answer") if isinstance(t, Mapping) else known.get(t) for t in spec.get("tasks") or []]
    said = [form for form in named if form in FORMS]
    metric = METRICS.get((spec.get("evaluate") or {}).get("metric", "auto"))
    counted = [form for form in FORMS if metric is None or form in metric.answers] or [*FORMS]
    tested = next((form for form in reversed(said) if form in counted), counted[0])
    one = ((said or counted)[0], tested)
    if len(named) < 2:
        return [one]
    return [*([(MIXED, MIXED)] if metric is None else []), (MIXED, tested), one]


def _here(name: str) -> str:
    """A folder of the repository, in words where they mean it here."""
    return name if Path(name).is_dir() and Path(name).samefile(ROOT / name) else str(ROOT / name)


def _recipe(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    recipe = spec.get("recipe", "auto")
    return recipe if isinstance(recipe, Mapping) else {"name": recipe}


def _few(recipe: Any) -> Any:
    """A recipe, or a part of one: stages that say their length are short, and no model has to be at hand."""
    if isinstance(recipe, list):
        return [_few(each) for each in recipe]
    if not isinstance(recipe, Mapping):
        return recipe
    made = {key: _few(value) for key, value in recipe.items()}
    for key in {"steps", "measure_every"} & made.keys():
        made[key] = min(made[key], OWN_STEPS) if isinstance(made[key], int) else made[key]
    if made.get("retriever", "random") not in ("random", "tfidf"):
        made["retriever"] = "tfidf"
    return made


def _evaluation(evaluate: Mapping[str, Any], test: str) -> Json:
    decode = evaluate.get("decode") or {}
    longest = min(decode.get("max_new_tokens", ANSWER), ANSWER)
    most = 2 * TEST if f"/{MIXED}:" in test else TEST  # a report of each task takes two utterances of it
    limit = min(evaluate.get("limit") or most, most)
    made = {"on": test, **evaluate, "limit": limit, "decode": {**decode, "max_new_tokens": longest}}
    if made.get("select") == "best":
        made.setdefault("dev", test.replace(":test", ":dev"))
    return {**made, "dev_limit": TEST} if "dev" in made else made


# ---- a grid


def _each_once(spec: Mapping[str, Any], rules: Mapping[str, Rule]) -> Json:
    """Grid and further cells with every value in one cell at least, instead of all combinations, and one seed."""
    short = {path.rpartition(".")[2]: rule for path, rule in rules.items()}
    unsaid = {name for path in LEFT_OUT for name in (path, path.rpartition(".")[2])} | {"global_batch"}

    def values(table: Mapping[str, Any]) -> dict[str, list[Any]]:
        found = {}
        for key, given in table.items():
            tail = key.rpartition(".")[2]
            rule = rules.get(key) or short.get(key) or (lambda value, tail=tail: _few({tail: value})[tail])
            each = [rule(value) for value in (given if isinstance(given, list) else [given])]
            found[key] = [v for n, v in enumerate(each) if v not in each[:n]]
        many = {k: v[:1] if k.rpartition(".")[2] in ("seed", "subset_seed") else v for k, v in found.items()}
        return {k: v for k, v in many.items() if k not in unsaid}

    grid = values(spec["grid"]) or {"seed": [0]}
    longest = max(len(v) for v in grid.values())
    cells = [{key: v[n % len(v)] for key, v in grid.items()} for n in range(longest)]
    further = [{key: v[0] for key, v in values(cell).items()} for cell in spec.get("also", [])]
    first, *rest = [c for n, c in enumerate([*cells, *further]) if c not in [*cells, *further][:n]]
    return {"grid": {key: [value] for key, value in first.items()}, **({"also": rest} if rest else {})}


# ---- what is said


def differences(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """A line for every field in which two specs differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys((*before, *after)):
            yield from differences(before.get(key), after.get(key), f"{at}.{key}" if at else str(key))
    elif before != after:
        yield f"{at}: {_words(before)} → {_words(after)}"


def _words(value: Any) -> str:
    if value is None:
        return "not said"
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 70 else f"{said[:67]}…"
