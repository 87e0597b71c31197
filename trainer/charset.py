"""What may be wrong with a transcript's characters (light): hidden ones, decomposed ones, letters of another script.

Scripts are told by the first word of a letter's Unicode name (LATIN, CYRILLIC, CJK, …): the standard library has no
script property, and for letters the two agree.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache

SCRIPTS: dict[tuple[str, ...], str] = {
    ("LATIN",): "af az bs ca cs cy da de en es et eu fi fil fr ga gl hr hu id is it jv lb lt lv ms mt nb nl nn no pl "
    "pt ro sk sl so sq sv sw tl tr uz vi xh zu",
    ("CYRILLIC",): "be bg kk ky mk mn ru tg uk",
    ("CYRILLIC", "LATIN"): "sr",
    ("ARABIC",): "ar ckb fa ps sd ug ur",
    ("DEVANAGARI",): "hi mr ne sa",
    ("CJK", "BOPOMOFO"): "zh yue cmn",
    ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"): "ja",
    ("HANGUL", "CJK"): "ko",
    ("GREEK",): "el", ("HEBREW",): "he yi", ("ARMENIAN",): "hy", ("GEORGIAN",): "ka", ("ETHIOPIC",): "am ti",
    ("BENGALI",): "as bn", ("GUJARATI",): "gu", ("GURMUKHI",): "pa", ("KANNADA",): "kn", ("KHMER",): "km",
    ("LAO",): "lo", ("MALAYALAM",): "ml", ("MYANMAR",): "my", ("SINHALA",): "si", ("TAMIL",): "ta", ("TELUGU",): "te",
    ("THAI",): "th",
}  # fmt: skip
"""Scripts that languages are written in. Not checked: a language that is not here, and a tag that names a script."""

JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiners: letters of Persian and of India's scripts need them."""

_BY_LANGUAGE = {language: scripts for scripts, languages in SCRIPTS.items() for language in languages.split()}
_WORD = re.compile(r"[^\W\d_]+")


@cache
def script_of(letter: str) -> str:
    """The script of a letter; empty for one without a name."""
    return unicodedata.name(letter, "").split(" ")[0]


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts that texts of a BCP-47 tag are written in; empty where that is not known here."""
    primary, *rest = language.lower().replace("_", "-").split("-")
    return () if any(len(part) == 4 and part.isalpha() for part in rest) else _BY_LANGUAGE.get(primary, ())


def letters(text: str) -> Counter[str]:
    """Number of letters by script."""
    if text.isascii():
        return Counter({"LATIN": n} if (n := sum(map(str.isalpha, text))) else {})
    return Counter(script_of(c) for c in text if c.isalpha() and unicodedata.category(c) != "Lm")


def findings(text: str, language: str) -> Iterator[tuple[str, str, str]]:
    """What is odd about a transcript: (code, the characters, remedy)."""
    if text.isascii() and text.isprintable() and "LATIN" in (scripts_of(language) or ("LATIN",)):
        return
    if hidden := "".join(dict.fromkeys(c for c in text if _hidden(c))):
        named = ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() for c in hidden[:5])
        if "\ufffd" in hidden:
            remedy = "stands where a byte could not be read as text; import the source again in its own encoding"
        else:
            remedy = "is no part of what is said; remove it"
        yield "control_character", named, remedy
    if not unicodedata.is_normalized("NFC", text):
        yield "not_nfc", text, "has letters in pieces (base and accent apart), so equal words differ; write it as NFC"
    if own := scripts_of(language):
        yield from _foreign(text, language, own)


def _hidden(c: str) -> bool:
    """Control and format characters, unpaired halves, private and unassigned ones, and the mark of a lost byte."""
    return c == "\ufffd" or (unicodedata.category(c)[0] == "C" and c not in JOINERS)


def _foreign(text: str, language: str, own: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    found = letters(text)
    foreign = sum(n for script, n in found.items() if script not in own)
    if foreign * 2 > found.total():
        most = max((s for s in found if s not in own), key=found.__getitem__)
        yield "other_script", text, f"is mostly {most.lower()} letters, which {language} is not written in; look at it"
        return
    for word in _WORD.findall(text) if foreign else ():
        scripts = letters(word)
        if len(scripts) > 1 and any(s in own for s in scripts) and any(s not in own for s in scripts):
            odd = "".join(c for c in word if script_of(c) not in own)
            yield "mixed_scripts", word, f"has {odd!r} of another script inside a word of {language}; write it in one"
            return
