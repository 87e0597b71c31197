"""What another format has no place for, so that an export comes back as it was: under one key, `attune`."""

from typing import Any

from trainer.manifest import Utterance

OURS = "attune"


def extra(row: Utterance) -> dict[str, Any]:
    """Fields of a row beyond recording, times, text, language and speaker; absent where empty."""
    fields = {
        "id": row.id, "task": row.task, "split": row.split, "label": row.label, "words": list(row.words or ()),
        "meta": row.meta, "question": row.question, "choices": list(row.choices or ()),
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def restored(fields: dict[str, Any]) -> dict[str, Any]:
    """What `extra` wrote, as fields of a record."""
    found = {name: fields[name] for name in ("id", "split", "label", "meta", "question") if name in fields}
    return found | {name: tuple(fields[name]) for name in ("words", "choices") if fields.get(name)}
