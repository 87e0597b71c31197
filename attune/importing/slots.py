"""Ways in which people write slots: inline in the text, as tags per token, or in a cell of their own."""

import ast
import json
import re
from typing import Any

Slot = dict[str, str]

_INLINE = re.compile(r"\[\s*([^\[\]:]+?)\s*:\s*([^\[\]]*?)\s*\]")


def has_inline(text: str) -> bool:
    """Whether the text carries a slot like `[time : nine am]`."""
    return _INLINE.search(text) is not None


def parse_inline(text: str) -> tuple[str, list[Slot]]:
    """(plain text, slots in text order) of `wake me at [time : nine am]`. ValueError on stray brackets."""
    slots = [{"type": kind, "value": " ".join(value.split())} for kind, value in _INLINE.findall(text)]
    plain = " ".join(_INLINE.sub(lambda match: f" {match[2]} ", text).split())
    plain = re.sub(r" ([,.;!?،؟])", r"\1", plain)
    if "[" in plain or "]" in plain:
        raise ValueError(f"brackets do not match in {text!r}; write [type : value], not nested")
    if any(not slot["value"] for slot in slots):
        raise ValueError(f"a slot without value in {text!r}")
    return plain, slots


def parse_tags(tokens: list[str], tags: list[str]) -> list[Slot]:
    """Slots of BIO, BIOES or BILOU tags (`O`, `B-time`, `I-time`, …); a value is its tokens joined by blanks.

    An I- without its B- begins a slot (the older IOB1 habit). ValueError on an unknown tag.
    """
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens but {len(tags)} tags")
    slots: list[tuple[str, list[str]]] = []
    open_type = None
    for token, tag in zip(tokens, tags, strict=True):
        mark, _, kind = tag.partition("-")
        if mark in ("O", "", "_") and not kind:
            open_type = None
            continue
        if mark not in ("B", "I", "E", "S", "L", "U") or not kind:
            raise ValueError(f"tag {tag!r} is not O, B-type or I-type")
        if mark in ("B", "S", "U") or kind != open_type:
            slots.append((kind, []))
        slots[-1][1].append(token)
        open_type = None if mark in ("E", "L", "S", "U") else kind
    return [{"type": kind, "value": " ".join(words)} for kind, words in slots]


def parse_cell(cell: Any, text: str | None) -> tuple[str | None, list[Slot]]:
    """(text, slots) of a cell with slots: inline text, JSON, `time=nine; date=friday`, or tags for the text's words.

    ValueError says what was expected.
    """
    if isinstance(cell, str):
        cell = cell.strip()
        if not cell:
            return text, []
        if has_inline(cell):
            plain, slots = parse_inline(cell)
            return text or plain, slots
        if cell[0] in "[{":
            return text, from_json(_literal(cell))
        words = (text or "").split()
        if words and len(cell.split()) == len(words) and re.fullmatch(r"(O|[BIESLU]-\S+)(\s+(O|[BIESLU]-\S+))*", cell):
            return text, parse_tags(words, cell.split())
        pairs = [pair.partition("=") for pair in re.split(r"[;|]", cell) if pair.strip()]
        if all(sign and kind.strip() and value.strip() for kind, sign, value in pairs):
            return text, [{"type": kind.strip(), "value": value.strip()} for kind, _, value in pairs]
        if text is None or cell == text:
            return cell, []  # an annotated sentence without any slot
        raise ValueError(f"slots {cell!r}: write [type : value] in the text, JSON, or type=value; type=value")
    return text, from_json(cell)


def _literal(cell: str) -> Any:
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(cell)  # what `str(list)` leaves in a CSV
        except (ValueError, SyntaxError):
            raise ValueError(f"slots {cell!r}: neither JSON nor [type : value]") from None


def from_json(value: Any) -> list[Slot]:
    """Slots of `{"time": "nine"}`, `[{"type", "value"}, …]` or `[["time", "nine"], …]`; a list repeats a type."""
    if value is None:
        return []
    slots: list[Slot] = []
    if isinstance(value, dict):
        for kind, given in value.items():
            slots += [{"type": str(kind), "value": str(v)} for v in (given if isinstance(given, list) else [given])]
        return slots
    for item in value if isinstance(value, list | tuple) else [None]:
        if isinstance(item, dict):
            kind = next((item[k] for k in ("type", "slot", "entity", "name", "label") if k in item), None)
            filler = next((item[k] for k in ("value", "filler", "text", "word") if k in item), None)
        elif isinstance(item, list | tuple) and len(item) == 2:
            kind, filler = item
        else:
            kind = filler = None
        if kind is None or filler is None:
            raise ValueError(f'slots {value!r}: expected {{"type": "value"}} or [{{"type", "value"}}]')
        slots.append({"type": str(kind), "value": str(filler)})
    return slots
