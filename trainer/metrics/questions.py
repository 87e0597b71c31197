"""Question answering: exact match and word F1 as SQuAD scores them (Rajpurkar et al. 2016; Spoken-SQuAD uses the same).

Answers are compared in lower case, without ASCII punctuation and without the English articles, in the form of the
official `evaluate-v2.0.py` (rajpurkar/SQuAD-explorer, commit eee5fdb), whose numbers on generated cases are in
`tests/golden/texts.json`. One reference answer per question. Words are what stands between white space, so for Chinese
or Japanese answers the F1 is an exact match; use `rouge1`.
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
    return [float(_words(reference) == _words(prediction or "")), 1.0]


def qa_f1_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[F1 of the words in common, 1]; where either answer has no words left, 1 if both have none, else 0."""
    expected, given = _words(reference), _words(prediction or "")
    if not expected or not given:
        return [float(expected == given), 1.0]
    common = (Counter(expected) & Counter(given)).total()
    if not common:
        return [0.0, 1.0]
    precision, recall = common / len(given), common / len(expected)
    return [2 * precision * recall / (precision + recall), 1.0]


def _words(answer: str) -> list[str]:
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()
