"""Named entities of SLUE-VoxPopuli: micro F1 of (tag, phrase), and label-F1, which asks for the tags alone.

Shon et al. 2022 (SLUE, ICASSP), section 3.2, in the form of slue-toolkit's `eval_w2v_ner.py` and
`eval_utils_ner.py` (commit ed23039): pairs are unordered, a repeated pair counts as often as it stands, and the
eighteen OntoNotes tags are combined to seven before anything is counted. What that scorer says of generated cases is in
`tests/golden/slue_ner.json`.
"""

from typing import TYPE_CHECKING, Any

from trainer.metrics.slu import pair_counts, slots

if TYPE_CHECKING:
    from trainer.spec import Task

COMBINED = {
    "PLACE": ("GPE", "LOC"),
    "QUANT": ("CARDINAL", "ORDINAL", "QUANTITY", "MONEY", "PERCENT"),
    "ORG": ("ORG",),
    "WHEN": ("DATE", "TIME"),
    "NORP": ("NORP",),
    "PERSON": ("PERSON",),
    "LAW": ("LAW",),
}
"""The seven tags that are scored, and the OntoNotes tags that become each."""
DISCARDED = ("FAC", "EVENT", "WORK_OF_ART", "PRODUCT", "LANGUAGE")
"""OntoNotes tags that are not scored, on either side."""
_COMBINED_OF = {raw: tag for tag, raws in COMBINED.items() for raw in (tag, *raws)}


def ner_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[TP, FP, FN] of (combined tag, phrase); tags may be given combined or raw. An invalid answer names no entity.

    ValueError for a tag that is neither.
    """
    return pair_counts(_entities(reference, task), _entities(prediction, task))


def ner_label_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[TP, FP, FN] of combined tags, whatever their phrases; errors as `ner_counts`."""
    expected, given = ([(tag, "") for tag, _ in _entities(label, task)] for label in (reference, prediction))
    return pair_counts(expected, given)


def _entities(label: Any, task: "Task") -> list[tuple[str, str]]:
    found = [(kind, value) for kind, value in slots(label) if kind not in DISCARDED]
    for kind, _ in found:
        if kind not in _COMBINED_OF:
            raise ValueError(
                f"task '{task.name}': slue_ner_f1 and slue_ner_label_f1 know OntoNotes' tags and SLUE's seven, not "
                f"{kind!r}; for other tags use entity_f1"
            )
    return [(_COMBINED_OF[kind], value) for kind, value in found]
