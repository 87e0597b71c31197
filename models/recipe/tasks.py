"""Label-free tasks over sentences: each needs what was said at the answer slot, none needs an annotation."""

import random
from collections import Counter

import numpy as np

from models.recipe.text import DIGITS, LANGUAGES, as_json, read

TRANSCRIBE = "Transcribe the speech."
PROMPTS = {
    "repeat": TRANSCRIBE,
    "first": "What is the first word?",
    "second": "What is the second word?",
    "last": "What is the last word?",
    "count": "How many words are there?",
    "has": "Is the word {word} in it?",
    "which": "Which of these is in it: {menu}?",
    "key": "Which word matters most?",
    "topic": "What is the topic?",
    "language": "Which language is it?",
    "similar": "Say something similar.",
    "like": "Does it mean: {sentence}?",
    "ends": "Answer as JSON: first and last word.",
    "facts": "Answer as JSON: topic and key word.",
    "group": "Name the group.",
}
PROBE = "group"  # answered in text only while training: its accuracy on speech measures transfer without labels
# Weights: for any words at all, and for whole sentences of the corpus.
ANY_TEXT = {
    "repeat": 0.56, "first": 0.05, "second": 0.04, "last": 0.05, "count": 0.04, "has": 0.06, "which": 0.08,
    "ends": 0.07, "language": 0.05,
}  # fmt: skip
SENTENCE = {
    "repeat": 0.44, "first": 0.03, "second": 0.02, "last": 0.03, "count": 0.02, "has": 0.04, "which": 0.05,
    "ends": 0.04, "language": 0.02, "similar": 0.06, "like": 0.06, "topic": 0.08, "key": 0.06, "facts": 0.05,
}  # fmt: skip
NAMES = {"en": "English", "fr": "French", "de": "German", "ar": "Arabic"}
NUMBERS = [*DIGITS["en"].split(), "many"]
TOPICS, GROUPS, DIMENSIONS = 40, 20, 120


class Tasks:
    """Topics and neighbours come from English LSA vectors; translations share them through their common id."""

    def __init__(self) -> None:
        pivot = [row for name in ("en.train", "en.pivot", "en.val") for row in read(name)]
        pivot = [(key if key.isdigit() else f"slurp {i}", s) for i, (key, s) in enumerate(pivot)]
        self.held_out = {key for key, _ in read("en.val")}
        self._fit([s for _, s in pivot])
        row_of = {key: i for i, (key, _) in enumerate(pivot)}
        self.row: dict[tuple[str, str], int] = {("en", s): row_of[key] for key, s in pivot}
        self.sentences: dict[str, list[str]] = {}
        self.spoken: dict[tuple[str, int], str] = {("en", row_of[key]): s for key, s in pivot}
        self.idf: dict[str, dict[str, float]] = {}
        for language in LANGUAGES:
            rows = read(f"{language}.train")
            self.sentences[language] = [s for _, s in rows]
            count = Counter(w for _, s in rows for w in set(s.split()))
            self.idf[language] = {w: float(np.log(len(rows) / c)) for w, c in count.items()}
            for key, s in [*rows, *read(f"{language}.val")] if language != "en" else []:
                if key in row_of:
                    self.row[language, s] = row_of[key]
                    if key not in self.held_out:
                        self.spoken[language, row_of[key]] = s
        held = {row_of[key] for key in self.held_out}
        self.spoken = {key: s for key, s in self.spoken.items() if key[1] not in held}
        self.words = {language: sorted(self.idf[language]) for language in LANGUAGES}

    def _fit(self, sentences: list[str]) -> None:
        count = Counter(w for s in sentences for w in set(s.split()))
        kept = [w for w, c in sorted(count.items()) if 3 <= c < len(sentences) / 5]
        column = {w: i for i, w in enumerate(kept)}
        bag = np.zeros((len(sentences), len(kept)), np.float32)
        for i, s in enumerate(sentences):
            for w in s.split():
                if w in column:
                    bag[i, column[w]] = np.log(len(sentences) / count[w])
        bag /= np.linalg.norm(bag, axis=1, keepdims=True) + 1e-6
        _, axes = np.linalg.eigh(bag.T @ bag)
        z = bag @ axes[:, -DIMENSIONS:]
        z /= np.linalg.norm(z, axis=1, keepdims=True) + 1e-6
        near = [np.argsort(-(z[i : i + 1000] @ z.T), axis=1)[:, 1:9] for i in range(0, len(z), 1000)]
        self.near = np.concatenate(near)
        self.topic, self.topics = _clusters(z, bag, kept, TOPICS, 0)
        self.group, self.groups = _clusters(z, bag, kept, GROUPS, 1)

    def answer(self, task: str, language: str, text: str) -> str | None:
        """The answer of a task that has exactly one; None where the sentence is not of the corpus."""
        words, row = text.split(), self.row.get((language, text))
        key = max(words, key=lambda w: self.idf[language].get(w, 0.0))
        if task in ("topic", "group", "facts") and row is None:
            return None
        match task:
            case "repeat":
                return text
            case "first" | "second" | "last":
                return words[{"first": 0, "second": 1, "last": -1}[task]]
            case "count":
                return NUMBERS[min(len(words), 13)]
            case "key":
                return key
            case "language":
                return NAMES[language]
            case "ends":
                return as_json(first=words[0], last=words[-1])
            case "topic":
                return self.topics[self.topic[row]]
            case "group":
                return self.groups[self.group[row]]
            case "facts":
                return as_json(topic=self.topics[self.topic[row]], key=key)
        raise AssertionError(task)

    def ask(self, language: str, text: str, rng: random.Random) -> tuple[str, str | None]:
        """A random task on the text -> instruction, answer. One in ten is an instruction without an answer."""
        if rng.random() < 0.1:
            return self._unknown(rng), None
        row, words = self.row.get((language, text)), text.split()
        menu = ANY_TEXT if row is None else SENTENCE
        task = rng.choices(list(menu), list(menu.values()))[0]
        if task == "second" and len(words) < 2:
            task = "first"
        yes = rng.random() < 0.5
        if task == "has":
            others = [w for w in rng.choice(self.sentences[language]).split() if w not in words]
            word = rng.choice(words if yes or not others else others)
            return PROMPTS[task].format(word=word), "yes" if word in words else "no"
        if task == "which":
            absent = [w for w in rng.sample(self.words[language], rng.randint(2, 12)) if w not in words]
            word = rng.choice(words)
            menu = rng.sample([*absent, word], len(absent) + 1)
            return PROMPTS[task].format(menu=", ".join(menu)), word
        if task in ("similar", "like"):
            assert row is not None
            near = [self.spoken[language, n] for n in self.near[row] if (language, n) in self.spoken]
            if not near:
                return PROMPTS["repeat"], text
            if task == "similar":
                return PROMPTS[task], near[rng.randrange(min(len(near), 5))]
            other = rng.choice(near) if yes else rng.choice(self.sentences[language])
            return PROMPTS[task].format(sentence=other), "yes" if yes else "no"
        return PROMPTS[task], self.answer(task, language, text)

    def _unknown(self, rng: random.Random) -> str:
        """An instruction that nobody can answer yet: speech and text must agree on it all the same."""
        forms = ("What is the {}?", "Name the {}.", "{}?", "Answer as JSON: {} and {}.", "Choose: {}, {} or {}.")
        form = rng.choice(forms)
        return form.format(*(rng.choice(self.words["en"]) for _ in range(3)))


def _clusters(z, bag, words: list[str], count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Spherical k-means -> cluster of every row, and each cluster's name: its strongest free word."""
    centre = z[np.random.default_rng(seed).choice(len(z), count, replace=False)]
    for _ in range(25):
        member = (z @ centre.T).argmax(1)
        centre = np.stack([z[member == i].mean(0) if (member == i).any() else centre[i] for i in range(count)])
        centre /= np.linalg.norm(centre, axis=1, keepdims=True) + 1e-6
    member, names = (z @ centre.T).argmax(1), []
    for i in range(count):
        order = np.argsort(-bag[member == i].sum(0))
        names.append(next(words[j] for j in order if words[j] not in names))
    return member, names
