"""Characters of transcripts: what is hidden, in pieces or of another script is named; what is right stays unsaid."""

import unicodedata

import pytest

from trainer.charset import findings, letters, scripts_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("turn on the light, please!", "en"),
        ("Übermäßig façade", "de-DE"),
        ("افتح الباب", "ar"),
        ("می‌خواهم", "fa"),  # with a zero-width non-joiner, as it is written
        ("включи свет", "ru"),
        ("скажи Hello", "ru"),  # a foreign word among others
        ("ライトをつけて 消して", "ja"),
        ("コーヒーを一杯", "ja"),
        ("打开灯", "zh-Hans"),
        ("불을 켜", "ko"),
        ("बत्ती जलाओ", "hi"),
        ("ukljući svetlo", "sr-Latn"),
        ("anything идёт", "tlh"),  # a language without known scripts
        ("12 + 3 = 15", "ar"),
    ],
)
def test_nothing_is_said_of_what_is_right(text, language):
    assert list(findings(unicodedata.normalize("NFC", text), language)) == []


@pytest.mark.parametrize(
    ("text", "language", "code", "value"),
    [
        ("one\ttwo", "en", "control_character", "U+0009"),
        ("one\nline", "en", "control_character", "U+000A"),
        ("zero\u200bwidth", "en", "control_character", "U+200B ZERO WIDTH SPACE"),
        ("soft\u00adhyphen", "de", "control_character", "U+00AD SOFT HYPHEN"),
        ("caf\ufffd", "fr", "control_character", "U+FFFD REPLACEMENT CHARACTER"),
        (unicodedata.normalize("NFD", "café"), "fr", "not_nfc", unicodedata.normalize("NFD", "café")),
        ("turn on the light", "ar", "other_script", "turn on the light"),
        ("включи свет", "en", "other_script", "включи свет"),
        ("wоrd of Latin letters", "en", "mixed_scripts", "wоrd"),  # its second letter is Cyrillic
    ],
)
def test_each_fault_is_named(text, language, code, value):
    ((found, said, remedy),) = findings(text, language)
    assert (found, said) == (code, value)
    assert remedy


def test_the_odd_letter_is_shown():
    ((_, _, remedy),) = findings("wоrd of Latin letters", "en")
    assert "'о' of another script" in remedy  # the Cyrillic one


def test_letters_by_script():
    assert letters("ab, вг 12 和") == {"LATIN": 2, "CYRILLIC": 2, "CJK": 1}
    assert letters("12!") == {}


def test_a_tag_that_names_its_script_is_believed():
    assert scripts_of("sr-Latn-RS") == ()
    assert scripts_of("pt_BR") == ("LATIN",)
