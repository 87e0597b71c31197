"""Asks the official scorers about the generated cases and writes `tests/golden/*.json`; how: `tests/golden/README.md`.

    python tests/record_golden.py slurp|entities|labels|squad CLONE     a clone of the scorer's repository
    python tests/record_golden.py rouge|texts

No scorer's code is here: each is run as it is, with cases as its input files, and what it prints or writes is kept.
"""

import contextlib
import importlib
import io
import json
import runpy
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import golden_cases

GOLDEN = Path(__file__).parent / "golden"


def ranges(n: int, each: int) -> list[tuple[int, int]]:
    """All cases, then every `each` of them."""
    return [(0, n), *((k, min(k + each, n)) for k in range(0, n, each))]


def write(name: str, **found: Any) -> None:
    """Adds to a golden file; one case, one corpus a line."""
    file = GOLDEN / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    parts = []
    for key, value in {**known, **found}.items():
        lines = value if isinstance(value, list) else None
        said = json.dumps(value, ensure_ascii=False)
        if lines:
            said = "[\n" + ",\n".join(json.dumps(x, ensure_ascii=False, separators=(",", ":")) for x in lines) + "\n]"
        parts.append(f"{json.dumps(key)}: {said}")
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- SLURP


def slurp(clone: Path) -> None:
    """With jiwer 2.0.0 and textdistance 4.1.5, which its requirements pin."""
    cases = golden_cases.slurp()
    sys.path.insert(0, str(clone / "scripts/evaluation"))
    write(
        "slurp",
        cases=[[r["intent"], [[s["type"], s["value"]] for s in r["slots"]], text] for r, _, text in cases],
        unparsable=[k for k, (_, prediction, _) in enumerate(cases) if prediction is None],
        corpora=[{"cases": [a, b], **_slurp(cases[a:b], clone)} for a, b in ranges(len(cases), 20)],
        # The tables alone: [TP, FP, FN] by words and by characters.
        per_case=[[found["word"][3:], found["character"][3:]] for found in (_slurp([case], clone) for case in cases)],
    )


def _slurp(cases: Sequence, clone: Path) -> dict[str, list[float]]:
    """By measure [precision, recall, F, TP, FP, FN], as the script prints them."""
    with tempfile.TemporaryDirectory() as folder:
        gold, predicted = Path(folder, "gold.jsonl"), Path(folder, "predicted.jsonl")
        gold.write_text("".join(json.dumps(_gold(k, case[0])) + "\n" for k, case in enumerate(cases)))
        predicted.write_text(
            "".join(json.dumps(_predicted(k, case[1])) + "\n" for k, case in enumerate(cases) if case[1] is not None)
        )
        sys.argv = ["evaluate.py", "-g", str(gold), "-p", str(predicted), "--errors", "--table-layout", "csv"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(clone / "scripts/evaluation/evaluate.py"), run_name="__main__")
    rows = [line.split(",")[1:] for line in said.getvalue().splitlines() if line.startswith("OVERALL")]
    names = ("scenario", "action", "intent", "entities", "word", "character", "slu")
    return {name: [float(x) for x in row] for name, row in zip(names, rows, strict=True)}


def _gold(k: int, label: dict) -> dict:
    tokens, entities = [], []
    for slot in label["slots"]:
        words = slot["value"].split(" ")
        entities.append({"span": list(range(len(tokens), len(tokens) + len(words))), "type": slot["type"]})
        tokens += [{"surface": word} for word in words]
    scenario, action = label["intent"].split("_", 1)
    return {
        "slurp_id": k, "scenario": scenario, "action": action, "tokens": tokens, "entities": entities,
        "recordings": [{"file": f"{k}.wav"}],
    }  # fmt: skip


def _predicted(k: int, label: dict) -> dict:
    scenario, action = label["intent"].split("_", 1)
    entities = [{"type": slot["type"], "filler": slot["value"]} for slot in label["slots"]]
    return {"file": f"{k}.wav", "scenario": scenario, "action": action, "entities": entities}


# ---------------------------------------------------------------------------------------------------------------- SLUE


def entities(clone: Path) -> None:
    """The evaluation of end-to-end models, which reads texts with entities between marks."""
    sys.path.insert(0, str(clone))
    scorer = importlib.import_module("slue_toolkit.eval.eval_w2v_ner")
    cases = golden_cases.entities()
    corpora = [{"cases": [a, b], **_entities(cases[a:b], scorer)} for a, b in ranges(len(cases), 20)]
    write("slue_ner", cases=cases, corpora=corpora)


def _entities(cases: Sequence, scorer: Any) -> dict[str, float]:
    mark = {tag: char for char, tag in scorer.spl_char_to_entity.items()}
    with tempfile.TemporaryDirectory() as folder:
        decoded = Path(folder, "decode", "nolm")
        decoded.mkdir(parents=True)
        for side, name in enumerate(("ref", "hypo")):
            lines = [
                " ".join(["so", *(f"{mark[tag]} {phrase} ]" for tag, phrase in case[side] or [])]) for case in cases
            ]
            (decoded / f"{name}.word-checkpoint_best.pt-dev.txt").write_text("\n".join(lines) + "\n")
        with contextlib.redirect_stdout(io.StringIO()):
            scorer.eval_ner(folder, "dev", "combined")
        found = {
            kind: json.loads(Path(folder, "metrics", f"dev-nolm-combined-{kind}.json").read_text())
            for kind in ("standard", "label")
        }
    return {"f1": found["standard"]["overall_micro"]["fscore"], "label_f1": found["label"]["overall_micro"]["fscore"]}


def labels(clone: Path) -> None:
    """The evaluations of text models, whose model is replaced by one that answers as the cases say."""
    for name, module, task, known in (
        ("sentiment", "eval_nlp_sentiment", golden_cases.sentiments(), golden_cases.SENTIMENTS),
        ("acts", "eval_nlp_da", golden_cases.acts(), golden_cases.ACTS),
    ):
        corpora = [
            {"cases": [a, b], **_labels(clone, module, name, task[a:b], known)} for a, b in ranges(len(task), 30)
        ]
        write("slue_labels", **{name: corpora, f"{name}_labels": known, f"{name}_cases": task})


def _labels(clone: Path, module: str, kind: str, cases: Sequence, known: list[str]) -> dict[str, float]:
    import numpy as np

    def scores(answer: str | list[str]) -> np.ndarray:
        return np.array([1.0 if name == answer or name in answer else -1.0 for name in known])

    class Tensor:
        def __init__(self, values: np.ndarray):
            self.values = values

        squeeze = detach = cpu = lambda self: self

        def numpy(self) -> np.ndarray:
            return self.values

        def __getitem__(self, _: int) -> "Tensor":
            return self

    class Output(dict):
        logits = property(lambda self: self["logits"])

    class Inputs(dict):
        def to(self, _: str) -> "Inputs":
            return self

    class Model:
        to = lambda self, _: self  # noqa: E731

        def __call__(self, line: str) -> Output:
            return Output(logits=Tensor(scores(cases[int(line[1:])][1])))

    def made(name: str, **content: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)

    def pretrained(thing: Any) -> Any:
        return types.SimpleNamespace(from_pretrained=lambda *a, **k: thing)

    config = types.SimpleNamespace(label2id={name: k for k, name in enumerate(known)}, id2label=dict(enumerate(known)))
    made(
        "transformers", AutoConfig=pretrained(config), AutoModelForSequenceClassification=pretrained(Model()),
        AutoTokenizer=pretrained(lambda line, **_: Inputs(line=line)),
    )  # fmt: skip
    made("torch", cuda=None, Tensor=Tensor, sigmoid=lambda at: Tensor(1 / (1 + np.exp(-at.values))))
    made("pytorch_lightning", metrics=None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        (Path(folder) / "dev.wrd").write_text("".join(f"u{k}\n" for k in range(len(cases))))
        (Path(folder) / "dev.sent").write_text("".join(f"{r}\n" for r, _ in cases))
        (Path(folder) / "dev.da").write_text("".join(f"{','.join(r)}\n" for r, _ in cases))
        where = ["--data", folder, "--subset"] if kind == "sentiment" else ["--manifest-dir", folder, "--split"]
        sys.argv = [module, *where, "dev", "--save-dir", folder]
        runpy.run_path(str(clone / f"slue_toolkit/eval/{module}.py"), run_name="__main__")
        found = json.loads(next(Path(folder).glob("pred-dev*.json")).read_text())
    return {"macro_f1": found["macro"]["f1"], "weighted_f1": found["micro"]["f1"], "recall": found["macro"]["recall"]}


# --------------------------------------------------------------------------------------------------------------- texts


def texts() -> None:
    """jiwer's rates and sacrebleu's scores."""
    import jiwer
    from sacrebleu.metrics import BLEU, CHRF

    cases = golden_cases.texts()
    scorers: dict[str, Callable[[list[str], list[str]], float]] = {"wer": jiwer.wer, "cer": jiwer.cer}
    for name, scorer in (
        ("bleu", BLEU(force=True)), ("bleu_zh", BLEU(tokenize="zh", force=True)),
        ("bleu_character", BLEU(tokenize="char", force=True)), ("chrf", CHRF()),
    ):  # fmt: skip
        scorers[name] = lambda refs, hyps, at=scorer: at.corpus_score(hyps, [refs]).score
    corpora = []
    for a, b in [*ranges(len(cases), 20), *ranges(len(cases), 1)[1:]]:
        refs, hyps = ([case[side] for case in cases[a:b]] for side in (0, 1))
        corpora.append({"cases": [a, b], **{name: scorer(refs, hyps) for name, scorer in scorers.items()}})
    write("texts", cases=cases, corpora=corpora)


def rouge() -> None:
    """rouge-score as it is on the ASCII cases, and with our tokeniser on all."""
    from rouge_score.rouge_scorer import RougeScorer

    from trainer.metrics.summaries import tokens

    kinds = ["rouge1", "rouge2", "rougeL"]
    own, ours = RougeScorer(kinds), RougeScorer(kinds, tokenizer=types.SimpleNamespace(tokenize=tokens))
    found: dict[str, list] = {"rouge_ascii": [], "rouge": []}
    for reference, hypothesis in golden_cases.texts():
        said = ours.score(reference, hypothesis)
        found["rouge"].append([said[kind].fmeasure for kind in kinds])
        ascii_only = reference.isascii() and hypothesis.isascii()
        said = own.score(reference, hypothesis) if ascii_only else None
        found["rouge_ascii"].append(said and [said[kind].fmeasure for kind in kinds])
    write("texts", **found)


def squad(clone: Path) -> None:
    """The official script of SQuAD 2.0 on one question a case, then with the next two references as further right
    answers; references without words are no answers."""
    scorer = runpy.run_path(str(clone / "evaluate-v2.0.py"))
    cases = golden_cases.texts()
    given = {str(k): hypothesis for k, (_, hypothesis) in enumerate(cases)}
    found = {}
    for name, several in (("squad", 1), ("squad_several", 3)):
        answers = [[{"text": reference} for reference, _ in cases[k : k + several]] for k in range(len(cases))]
        questions = [{"id": key, "answers": right} for key, right in zip(given, answers, strict=True)]
        exact, f1 = scorer["get_raw_scores"]([{"paragraphs": [{"qas": questions}]}], given)
        found[name] = [[exact[key], f1[key]] for key in given]
    write("texts", **found)


if __name__ == "__main__":
    what: dict[str, Callable[..., None]] = {
        "slurp": slurp, "entities": entities, "labels": labels, "texts": texts, "rouge": rouge, "squad": squad
    }  # fmt: skip
    what[sys.argv[1]](*(Path(argument) for argument in sys.argv[2:]))
