"""Text normalisers for word and character error rates, by name. A number without its normaliser is not a
result.

`whisper_english` and `whisper_basic` are Whisper's own (Radford et al. 2022, appendix C), as most papers report; the
others are ours, and their rates differ from those by points.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.spec import Task


def raw(text: str) -> str:
    """As written; only runs of white space become one space."""
    return " ".join(text.split())


def basic(text: str) -> str:
    """NFKC, lower case; punctuation (P*), symbols (S*) and control/format marks (C*) out; spaces collapsed.

    Apostrophes, and zero-width characters, are removed without a gap (don't -> dont), every other mark
    leaves one (7-up -> 7 up). Combining marks stay, so Arabic vowel signs and Devanagari vowels count: a
    reference with diacritics and a hypothesis without them differ (`arabic` removes them). The Arabic
    tatweel, a stretching stroke and not a letter, goes. Numbers stay as written: "7" and "seven" differ.
    """
    out = []
    for char in unicodedata.normalize("NFKC", text).lower():
        category = unicodedata.category(char)
        if char in "'’ʼ`´\u0640" or category == "Cf":
            continue
        # C other than Cf covers tabs and newlines, which separate words.
        out.append(" " if category[0] in "PSCZ" else char)
    # Lower-casing can decompose (İ becomes i + dot above): compose again so that equal letters are equal.
    return " ".join(unicodedata.normalize("NFKC", "".join(out)).split())


_ARABIC_LETTERS = str.maketrans({"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ؤ": "و", "ئ": "ي"})
_ARABIC_MARKS = re.compile("[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]")


def arabic(text: str) -> str:
    """`basic`, then vowel signs out and the spellings of alef, final ya and hamza carriers unified.

    Ta marbuta stays distinct from ha.
    """
    # Marks go before `basic`, whose NFKC would join alef and a following hamza mark into another letter.
    return basic(_ARABIC_MARKS.sub("", unicodedata.normalize("NFKC", text))).translate(_ARABIC_LETTERS)


# Scripts written without word spaces: Thai, Lao, Burmese and Khmer letters with the marks that follow them,
# kana and Han. Hangul is written with spaces and is not here.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
    "[\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3]*"
    "|[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
)


def basic_characters(text: str) -> str:
    """`basic`, then every character of a script without word spaces stands as a word of its own.

    WER on it is the mixed error rate: characters for Chinese, Japanese, Thai..., words for the rest.
    """
    return apart(basic(text))


def apart(text: str) -> str:
    """Every character of a script without word spaces (with the marks that follow it) as a word; spaces collapsed."""
    return " ".join(_UNSPACED.sub(lambda match: f" {match[0]} ", text).split())


def whisper_english(text: str) -> str:
    """Whisper's `EnglishTextNormalizer`: contractions, titles, British spellings and number words rewritten, fillers
    and bracketed words out. English only. Applied twice it may change a text again."""
    return _english()(text)


def whisper_basic(text: str) -> str:
    """Whisper's `BasicTextNormalizer`: lower case; bracketed words, symbols, punctuation and marks out.

    It replaces combining marks by spaces, which cuts words of Devanagari, Tamil, Thai and vowelled Arabic in pieces:
    for those use `basic`, and this one only to compare with papers that did.
    """
    return " ".join(_basic()(text).split())


# The package `whisper-normalizer` is Whisper's code without Whisper. Imported when a task asks for it: only trainers
# have it installed.
@cache
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


@cache
def _basic() -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()


def one_text(reference: Any, task: "Task") -> str:
    """The reference of a text answer as it stands. ValueError for anything else, several right answers among it."""
    if not isinstance(reference, str):
        raise ValueError(
            f"task '{task.name}': the metric needs one text as reference, got {reference!r}; "
            "several right answers go with qa_exact_match and qa_f1"
        )
    return reference


NORMALISERS: dict[str, Callable[[str], str]] = {
    "raw": raw,
    "basic": basic,
    "arabic": arabic,
    "basic_characters": basic_characters,
    "whisper_english": whisper_english,
    "whisper_basic": whisper_basic,
}


def normalise(text: str, name: str) -> str:
    """`text` through the normaliser called `name`; ValueError with the known names when there is none."""
    if name not in NORMALISERS:
        raise ValueError(f"normaliser '{name}' is unknown; known: {', '.join(NORMALISERS)}")
    return NORMALISERS[name](text)
