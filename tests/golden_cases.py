"""Generated cases that the official scorers were asked about (`tests/golden/`): seeded, and full of what goes wrong:
nothing said, nothing to say, everything twice, answers that cannot be parsed, any script."""

import json
import random

TYPES = ["date", "time", "person", "place_name", "event_name", "list_name"]
INTENTS = ["alarm_query", "alarm_set", "calendar_remove", "play_music", "lists_createoradd", "iot_hue_lightoff"]
ONTONOTES = [
    "CARDINAL", "DATE", "EVENT", "FAC", "GPE", "LANGUAGE", "LAW", "LOC", "MONEY", "NORP", "ORDINAL", "ORG", "PERCENT",
    "PERSON", "PRODUCT", "QUANTITY", "TIME", "WORK_OF_ART",
]  # fmt: skip
SENTIMENTS = ["Negative", "Neutral", "Positive"]
ACTS = [f"act_{k:02}" for k in range(18)]
"""Stand-ins for the eighteen dialog acts of SLUE-HVB; the last two never occur."""
WORDS = [
    "the", "a", "an", "seven", "pm", "on", "monday", "bob's", "café", "müller", "straße", "dance", "list", "new",
    "york", "half", "past", "at", "o'clock", "7:30", "$5", "naïve", "الأحد", "القادم", "साढ़े", "सात", "明天早上",
    "ทุ่มครึ่ง", "москва", "istanbul", "🎵", "e-mail", "co-op", "œuvre", "ﬁne",
]  # fmt: skip
SENTENCE = [*WORDS, "The", "Don't", "stop,", "ever!", "it's", "U.S.", "3.14", "(maybe)", "—", "今天天气很好。", "أَحْمَد"]


def slurp(n: int = 320) -> list[list]:
    """[reference, prediction or None, what the model wrote] each; labels as in a manifest, values in lower case."""
    rng = random.Random("slurp")
    return [_slurp(rng, k) for k in range(n)]


def _slurp(rng: random.Random, k: int) -> list:
    reference = {"intent": rng.choice(INTENTS), "slots": _slots(rng, rng.choice([0, 1, 1, 2, 2, 3, 5]))}
    if k % 8 == 7:
        return [reference, None, _unparsable(rng, reference, k // 8)]
    given = [dict(slot) for slot in reference["slots"]]
    for slot in list(given):
        match rng.randrange(9):
            case 0:
                given.remove(slot)
            case 1:
                slot["type"] = rng.choice(TYPES)
            case 2 | 3:
                slot["value"] = _edited(rng, slot["value"].split())
            case 4:
                given.append(dict(slot))
            case 5:
                slot["value"] += " at seven pm on monday morning then"
    if rng.random() < 0.3:
        given += _slots(rng, 1)
    if rng.random() < 0.1:
        given = []
    rng.shuffle(given)
    intent = reference["intent"] if rng.random() < 0.8 else rng.choice(INTENTS)
    values: dict[str, list[str]] = {}
    for slot in given:
        values.setdefault(slot["type"], []).append(slot["value"])
    text = json.dumps({"intent": intent, "slots": values}, ensure_ascii=rng.random() < 0.2)
    in_order = [{"type": kind, "value": value} for kind, of_kind in values.items() for value in of_kind]
    return [reference, {"intent": intent, "slots": in_order}, text]


def _slots(rng: random.Random, n: int) -> list[dict]:
    kinds = TYPES if rng.random() < 0.6 else TYPES[:2]  # few types: several slots of one
    return [{"type": rng.choice(kinds), "value": " ".join(_words(rng, 1, 4)).lower()} for _ in range(n)]


def _unparsable(rng: random.Random, label: dict, which: int) -> str:
    """An answer that is none, each of ten kinds in turn."""
    right = json.dumps({"intent": label["intent"], "slots": {"date": "monday"}})
    return [
        "", right[:-2], f"```json\n{right}\n```", right + right, right.replace('"', "'"), "I do not know.",
        right.replace("date", "weather"), right.replace("monday", ""), f"[{right}]", f'{{"intent": "{rng.random()}"}}',
    ][which % 10]  # fmt: skip


def entities(n: int = 300) -> list[list]:
    """[reference, prediction] lists of (raw tag, phrase); None: an answer that is none."""
    rng = random.Random("entities")
    cases = []
    for k in range(n):
        reference = [[rng.choice(ONTONOTES), " ".join(_words(rng, 1, 3))] for _ in range(rng.choice([0, 1, 2, 3, 5]))]
        if reference and rng.random() < 0.3:
            reference.append(list(rng.choice(reference)))
        given = [list(pair) for pair in reference if rng.random() < 0.8]
        for pair in given:
            if rng.random() < 0.2:
                pair[0] = rng.choice(ONTONOTES)
            if rng.random() < 0.2:
                pair[1] = " ".join(_words(rng, 1, 3))
        if given and rng.random() < 0.3:
            given += [list(rng.choice(given)) for _ in range(rng.choice([1, 2]))]
        rng.shuffle(given)
        cases.append([reference, None if k % 10 == 9 else given])
    return cases


def sentiments(n: int = 300) -> list[list]:
    """[reference, prediction] labels, of which one is rare."""
    rng = random.Random("sentiments")
    pairs = []
    for _ in range(n):
        reference = rng.choices(SENTIMENTS, [1, 12, 5])[0]
        pairs.append([reference, reference if rng.random() < 0.7 else rng.choice(SENTIMENTS)])
    return pairs


def acts(n: int = 300) -> list[list]:
    """[reference, prediction] sets of labels; an empty prediction is an answer that is none."""
    rng = random.Random("acts")
    cases = []
    for _ in range(n):
        reference = sorted(set(rng.choices(ACTS[:16], range(16, 0, -1), k=rng.choice([1, 1, 2, 3]))))
        given = {act for act in reference if rng.random() < 0.7} | set(rng.sample(ACTS[:16], rng.choice([0, 0, 1])))
        cases.append([reference, sorted(given)])
    return cases


def texts(n: int = 420) -> list[list]:
    """[reference, hypothesis] texts; every other one is plain English."""
    rng = random.Random("texts")
    cases = []
    for k in range(n):
        words = _words(rng, 0 if k % 10 == 0 else 1, 14, SENTENCE)
        if k % 2 == 0:
            words = [word for word in words if word.isascii()]
        said = {"": (7, 8), " ".join(words): (9, 12), " ".join(words + words): (13, 14)}
        hypothesis = next((text for text, places in said.items() if k % 20 in places), _edited(rng, words))
        if k % 2 == 0:
            hypothesis = " ".join(hypothesis.encode("ascii", "ignore").decode().split())
        cases.append([" ".join(words), hypothesis])
    return cases


def _words(rng: random.Random, least: int, most: int, among=WORDS) -> list[str]:
    return [rng.choice(among) for _ in range(rng.randint(least, most))]


def _edited(rng: random.Random, words: list[str]) -> str:
    """The words with some replaced, left out, doubled or cut; never nothing where there was something."""
    out = []
    for word in words:
        edits = [[word], [word], [word], [word], [rng.choice(WORDS)], [], [word, word], [word[: len(word) // 2 + 1]]]
        out += rng.choice(edits)
    return " ".join(out).lower() or " ".join(words[:1])
