"""A study's grid: from values by field to the settings of every run (light)."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.fields import Spec, problem
from trainer.spec import Data, Demos, Evaluate, JobSpec, Resources, SourceLanguage, Tuning
from trainer.stage import Optimizer
from trainer.strategies import STRATEGIES

WITHOUT_RECORDINGS = ("text_only", "synthetic_only")


def said(key: str, value: Any) -> str:
    """A setting in the name of its cell."""
    if key == "scheme":
        return str(value)
    if value is None:
        return "all recordings" if key in ("speech_per_label", "speech_fraction") else f"{key}=default"
    return f"{value} per label" if key == "speech_per_label" else f"{key}={value}"


def short(key: str) -> str:
    """A field as its cell is named after it: without its table, unless that is the source languages'."""
    return key if key.startswith("source.") else key.split(".")[-1]


def points(
    grid: Mapping[str, Any], also: Sequence[Mapping[str, Any]], template: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Settings of every run: the grid's product, then the cells of `also`, by dotted path."""
    found = []
    for n, table in enumerate([grid, *also]):
        at = "grid" if n == 0 else f"also[{n - 1}]"
        keys = [_field(key, template, at) for key in table]
        values = [v if isinstance(v, list) else [v] for v in table.values()]
        if empty := [k for k, v in zip(table, values, strict=True) if not v]:
            raise problem(f"{at}.{empty[0]}", "has no value; give at least one, or leave the key out")
        found += [dict(zip(keys, combination, strict=True)) for combination in itertools.product(*values)]
    # A scheme without recordings is one cell, however many subsets of them the grid has.
    without = [_without_recordings(point, template) for point in found]
    return [p for n, p in enumerate(without) if p == found[n] or p not in without[:n]]


def _without_recordings(point: dict[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    recipe = template.get("recipe", {})
    scheme = point.get("recipe.scheme", recipe.get("scheme") if isinstance(recipe, Mapping) else None)
    if scheme not in WITHOUT_RECORDINGS:
        return point
    unused = {f"data.{name}" for name in ("speech_fraction", "speech_per_label", "speech_rows", "pairing")}
    unused.add("source.speech_fraction")
    data = template.get("data", {})
    if point.get("data.text_rows") is None and not (isinstance(data, Mapping) and data.get("text_rows") is not None):
        unused.add("data.subset_seed")  # which chooses sentences too, where not all of them are used
    return {key: value for key, value in point.items() if key not in unused}


def _field(key: str, template: Mapping[str, Any], at: str = "grid") -> str:
    """The dotted path that a grid key means."""
    paths = _paths(template)
    if key in paths or (key.count(".") > 1 and _reaches(key.split("."), JobSpec, template)):
        return key  # what lies deeper goes by its whole path alone: shorter names would mean several
    matches = sorted(p for p in paths if p.split(".")[-1] == key and not p.startswith("source."))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise problem(f"{at}.{key}", f"means one of {', '.join(matches)}; write the dotted path")
    names = sorted({p.split(".")[-1] for p in paths} | set(paths))
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    raise problem(f"{at}.{key}", f"no such field{f'; did you mean {near[0]!r}?' if near else ''}")


def _strategy(template: Mapping[str, Any]) -> type[Spec]:
    recipe = template.get("recipe", "auto")
    name = recipe.get("name", "auto") if isinstance(recipe, Mapping) else recipe
    return next((s for s in STRATEGIES if s.model_fields["name"].default == name), STRATEGIES[0])


def _reaches(path: Sequence[str], model: type[Spec], template: Mapping[str, Any]) -> bool:
    """Whether names lead from a model to a field, by tables that are always there."""
    head, *rest = path
    fields = {f.alias or name: f.annotation for name, f in model.model_fields.items()}
    if head not in fields or not rest:
        return head in fields
    inner = _strategy(template) if (model, head) == (JobSpec, "recipe") else fields[head]
    return isinstance(inner, type) and issubclass(inner, Spec) and _reaches(rest, inner, template)


def _paths(template: Mapping[str, Any]) -> set[str]:
    nested = {
        "data": Data,
        "recipe": _strategy(template),
        "tuning": Tuning,
        "optimizer": Optimizer,
        "evaluate": Evaluate,
        "evaluate.demos": Demos,
        "resources": Resources,
    }
    if template.get("source"):
        nested["source"] = SourceLanguage
    paths = set(JobSpec.model_fields) - {"name", "spec_version"} - set(nested) | {"recipe"}
    for prefix, model in nested.items():
        fields = model.model_fields.items()
        paths |= {f"{prefix}.{f.alias or n}" for n, f in fields if (prefix, n) != ("recipe", "name")}
    return paths


def with_value(data: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of nested data with one value set (None: back to the default); a recipe given by name becomes a
    mapping first."""
    head, rest = path[0], path[1:]
    if not rest:
        return {k: v for k, v in {**data, head: value}.items() if k != head or value is not None}
    inner = data.get(head, {})
    if head == "recipe" and isinstance(inner, str):
        inner = {"name": inner}
    if not isinstance(inner, Mapping):
        raise problem(head, "is a mapping of fields, one of which the grid varies", inner)
    return {**data, head: with_value(inner, rest, value)}
