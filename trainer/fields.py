"""What every contract model shares: strict keys, documented fields, readable errors, words for shares and times."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """Base of all contract models: frozen, unknown keys refused with the nearest known name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def default(spec: Spec, name: str) -> Any:
    """A field's default: what a spec that is stored with every field written out says where its user said nothing."""
    return type(spec).model_fields[name].default


class Problem(NamedTuple):
    """One thing wrong with a spec: where (dotted), what was given, what is allowed."""

    param: str
    value: Any
    message: str

    def __str__(self) -> str:
        given = "" if self.value is None else f" (given: {self.value!r})"
        return f"{self.param}: {self.message}{given}"


class SpecError(ValueError):
    """The spec cannot run as written. `problems` lists every reason; nothing has been started.
    `job`: which job of a study it is about."""

    def __init__(self, problems: Sequence[Problem], job: str = ""):
        self.problems, self.job = list(problems), job
        super().__init__("\n".join(f"{job}: {p}" if job else str(p) for p in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to other processes whole."""
        return type(self), (self.problems, self.job), self.__dict__


def walk(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside nested data with its dotted field, tables and lists among them."""
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        field = f"{at}[{key}]" if isinstance(key, int) else f"{at}.{key}" if at else str(key)
        yield field, inner
        yield from walk(inner, field)


class UnfitDataError(SpecError):
    """The spec is right, but the data that a field of it names are not: missing, broken, or unfit for their place."""


def problem(param: str, message: str, value: Any = None, kind: type[SpecError] = SpecError) -> SpecError:
    """A SpecError (`kind`) with one problem."""
    return kind([Problem(param, value, message)])


@contextlib.contextmanager
def naming(job: str) -> Iterator[None]:
    """SpecErrors of the block say which job of a study they are about."""
    try:
        yield
    except SpecError as error:
        raise type(error)(error.problems, error.job or job) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say after an unknown word: the known one that is like it, else all of them."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"


def readable(error: ValidationError, data: Any, at: str = "") -> SpecError:
    """Pydantic's report in the user's own words: dotted path, value, what is allowed."""
    problems = []
    for item in error.errors(include_url=False):
        path, here, parent = [at] if at else [], data, data
        for n, part in enumerate(item["loc"]):
            inside = (isinstance(here, Mapping) and part in here) or (
                isinstance(here, list) and isinstance(part, int) and part < len(here)
            )
            last = n == len(item["loc"]) - 1
            if inside:
                parent, here = here, here[part]  # pyright: ignore
            elif not (last and item["type"] == "missing"):
                continue  # a tag of a union, not a key that the user wrote
            path.append(f"[{part}]" if isinstance(part, int) else str(part))
        value = None if isinstance(here, Mapping | list) or item["type"] == "missing" else here
        if item["type"] == "union_tag_invalid":
            value = item["ctx"].get("tag")  # type: ignore[typeddict-item]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message, value = _unknown(str(item["loc"][-1]), parent), None
        problems.append(Problem(".".join(path).replace(".[", "[") or "spec", value, message))
    return SpecError(problems)


def _unknown(key: str, siblings: Any) -> str:
    """What to say of an unknown key: the nearest key of the model that its siblings belong to."""

    def fit(model: type[BaseModel]) -> tuple[int, float]:
        names = model.model_fields
        likeness = max((difflib.SequenceMatcher(None, key, n).ratio() for n in names), default=0.0)
        return sum(k in names for k in siblings), likeness

    return f"unknown key; {nearest(key, max(_models(Spec), key=fit).model_fields)}"


def _models(root: type[BaseModel]) -> list[type[BaseModel]]:
    return [m for child in root.__subclasses__() for m in (child, *_models(child))]


def _share(value: Any) -> Any:
    """'2%' or 0.02; a bare 2 is ambiguous and refused."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
        if not match:
            raise PydanticCustomError("share", "write a share as '5%' or 0.05")
        value = float(match[1]) / 100
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= 1:
            raise PydanticCustomError("share", "a share lies between 0 and 1 (or 0% and 100%)")
        return float(value)
    raise PydanticCustomError("share", "write a share as '5%' or 0.05")


_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*", value)
        if not match:
            raise PydanticCustomError("seconds", "write a time as '90s', '30m', '4h' or '2d'")
        value = float(match[1]) * _UNITS[match[2]]
    if isinstance(value, int | float) and value <= 0:
        raise PydanticCustomError("seconds", "a time is longer than 0 s; leave it out for any")
    return value


Share = Annotated[float, BeforeValidator(_share, json_schema_input_type=float | str)]
"""A share of a whole: 0.05 or '5%'."""

Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str)]
"""A span of time in seconds: 90 or '90s', '30m', '4h', '2d'."""
