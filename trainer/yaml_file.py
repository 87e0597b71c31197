"""Spec files as plain data: YAML without its traps, errors with file and line."""

import re
from pathlib import Path
from typing import Any

import yaml

from trainer.fields import problem


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans and floats: `on`, `off`, `yes`, `no` are words (PyYAML reads YAML 1.1, where
    `evaluate: {on: x}` has the key True), and 5e-6 is a number. Escapes that name half of a character are refused."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise yaml.constructor.ConstructorError(None, None, f"half of a character ({value!r})", node.start_mark)
        return value


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in (_BOOL, _FLOAT)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    """A mapping whose keys stand once; YAML's own would keep the last silently."""
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if twice := next((k for k in keys if keys.count(k) > 1), None):
        raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' stands twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def read_yaml(path: Path | str) -> Any:
    """A spec file as plain data; SpecError names the file and, for a syntax error, the line."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except FileNotFoundError:
        raise problem(str(path), "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise problem(str(path), f"cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise problem(str(path), f"not valid YAML{where}: {getattr(error, 'problem', error)}") from None
    except RecursionError:
        raise problem(str(path), "nested too deeply") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of a tagged value: !!int x, 2026-99-99
        raise problem(str(path), f"not valid YAML: a value is not what it looks like ({error}); quote it") from None
