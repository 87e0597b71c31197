"""Question answering: exact match and word F1 as SQuAD scores them (Rajpurkar et al. 2016; Spoken-SQuAD uses the same).

Answers are compared in lower case, without ASCII punctuation and without the English articles, in the form of the
official `evaluate-v2.0.py` (rajpurkar/SQuAD-explorer, commit eee5fdb), whose numbers on generated cases are in
`tests/golden/texts.json`. Where a question has several right answers (a list as label), the one that fits best counts.
Words are what stands between white space, so for Chinese or Japanese answers the F1 is an exact match; use `rouge1`.
"""

import re
import string
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.spec import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def qa_exact_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[answers equal, 1]; an invalid answer is an empty one."""
    return [max(float(_words(answer) == _words(prediction or "")) for answer in _answers(reference)), 1.0]


def qa_f1_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[F1 of the words in common, 1]; where either answer has no words left, 1 if both have none, else 0."""
    given = _words(prediction or "")
    return [max(_f1(_words(answer), given) for answer in _answers(reference)), 1.0]


def _answers(reference: Any) -> list[str]:
    """The right answers; those without a word are none, as in the official script, unless there is no other."""
    answers = [reference] if isinstance(reference, str) else reference
    return [answer for answer in answers if _words(answer)] or [""]


def _f1(expected: list[str], given: list[str]) -> float:
    if not expected or not given:
        return float(expected == given)
    common = (Counter(expected) & Counter(given)).total()
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def _words(answer: str) -> list[str]:
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()
