"""The spec reference, generated from the fields: `docs/spec.md`."""

from typing import Any, get_args

from pydantic import BaseModel

from trainer.fields import Spec
from trainer.metrics import METRICS
from trainer.spec import JobSpec
from trainer.strategies import PAPERS
from trainer.study import StudySpec
from trainer.suite import Suite


def markdown() -> str:
    """Every field of every contract model as Markdown tables: name, type, default, meaning."""
    lines = ["# Spec reference", "", "Generated from the fields by `make docs`; do not edit.", ""]
    lines += ["Shares are written `5%` or `0.05`, times `90s`, `30m`, `4h`, `2d`.", ""]
    lines += ["Recipes: " + "; ".join(f"`{name}` ({what})" for name, what in PAPERS.items()) + ".", ""]
    lines += _metrics()
    for model in _reachable([JobSpec, StudySpec, Suite]):
        lines += [f"## {model.__name__}", "", _first(model), ""]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            kind = _kind(field.annotation).replace("|", "\\|")
            default = "required" if field.is_required() else f"`{_default(field)}`"
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{field.alias or name}` | {kind} | {default} | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _metrics() -> list[str]:
    """Every metric that a task may name, as a table."""
    about = "Values are fractions, those of BLEU and chrF too. Naming one of a pair records both."
    lines = ["## Metrics", "", about, ""]
    lines += ["| metric | unit | better | answers | with |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        better = "higher" if metric.higher_is_better else "lower"
        forms = ", ".join(form for form in ("json", "label", "label_set", "choice", "text") if form in metric.answers)
        beside = f"`{metric.beside}`" if metric.beside else ""
        lines.append(f"| `{metric.name}` | {metric.unit} | {better} | {forms} | {beside} |")
    return [*lines, ""]


def _first(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return f"{type(value).__name__}()" if isinstance(value, BaseModel) else repr(value)


def _kind(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    arguments = get_args(annotation)
    if arguments and hasattr(annotation, "__metadata__"):
        return _kind(arguments[0])
    origin = getattr(annotation, "__origin__", None)
    if "Literal" in str(origin):
        return ", ".join(f"`{a}`" for a in arguments)
    if arguments and origin in (list, dict, tuple):
        return f"{origin.__name__} of {', '.join(_kind(a) for a in arguments)}"
    if arguments:
        return " or ".join(dict.fromkeys(_kind(a) for a in arguments))
    return getattr(annotation, "__name__", str(annotation))


def _reachable(roots: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """The roots and every contract model their fields name, each once, in reading order."""
    found: list[type[BaseModel]] = []

    def visit(model: type[BaseModel]) -> None:
        if model in found:
            return
        found.append(model)
        for field in model.model_fields.values():
            walk(field.annotation)

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Spec):
            visit(annotation)
        for argument in get_args(annotation):
            walk(argument)

    for root in roots:
        visit(root)
    return found
