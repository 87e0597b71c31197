"""The report says what the rows say: values, verdicts, sentences, widths, files."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from trainer.compare import compare
from trainer.learning_curve import apart
from trainer.report import ReportRow, score_rows
from trainer.report_text import WIDTH, findings, number, table
from trainer.rng import philox
from trainer.write_report import write_report

SPEAKERS, EACH = 6, 60
PNG = b"\x89PNG\r\n\x1a\n"


def _run(share: float, stream: str, seed: int = 0, metric: str = "accuracy") -> list[dict]:
    """Rows of which about `share` are right; rows of one `seed` share what is hard, so that cells correlate."""
    n = SPEAKERS * EACH
    draw = 0.7 * philox(0, "hard", n) / 2**64 + 0.3 * philox(seed, stream, n) / 2**64
    right = draw <= np.quantile(draw, share)
    return [
        {
            "utterance": f"u{i}", "task": "command", "language": "ar", "speaker": f"s{i % SPEAKERS}",
            "modality": "speech", "reference": "yes", "text": "yes" if ok else "no", "parsed": "yes" if ok else "no",
            "valid": True, "counts": {metric: [float(ok), 1.0], "invalid_rate": [0.0, 1.0]},
        }
        for i, ok in enumerate(right)
    ]  # fmt: skip


def _cell(name: str, share: float, recordings: int, scheme: str | None = None, **more) -> ReportRow:
    runs = {seed: _run(share + 0.01 * seed, name, seed) for seed in (1, 2)}
    return ReportRow(name, scheme or name, recordings, None, 12.0 if recordings else 0.0, runs, **more)


def _control(name: str, share: float, recordings: int = 0) -> ReportRow:
    return ReportRow(name, name, recordings, None, 0.0, {None: _run(share, name)}, "control")


@pytest.fixture(scope="module")
def ladder() -> list[ReportRow]:
    return [
        _cell("synthetic_only", 0.21, 0),
        _cell("speech_only", 0.55, 200),
        _cell("direct_mix", 0.63, 200),
        _cell("curriculum", 0.63, 200),
        _cell("speech_only, all", 0.85, 2160, "speech_only"),
        _control("majority", 0.03),
        _control("untuned", 0.04),
        _control("linear_probe", 0.75, 200),
    ]


def test_languages_durations_and_units_are_told(tmp_path):
    def spread(row: ReportRow) -> ReportRow:
        def told(n: int) -> dict:
            return {"language": ["ar", "fr"][n % 2], "duration_s": 0.5 + n % 3}

        return replace(row, runs={s: [{**r, **told(n)} for n, r in enumerate(run)] for s, run in row.runs.items()})

    rows = [spread(_cell("direct_mix", 0.63, 200)), spread(_control("majority", 0.03))]
    report = write_report(tmp_path, rows, "accuracy", study="s", base="b")
    at = report.document["pooled"][0]["tables"]
    assert [g["group"] for g in at["language"]] == ["ar", "fr"]
    assert [(g["group"], g["n"]) for g in at["duration"]] == [("under 1 s", 120), ("1–2 s", 120), ("2–4 s", 120)]
    pooled = report.document["pooled"][0]["metrics"]["accuracy"]
    assert np.mean([g["metrics"]["accuracy"] for g in at["language"]]) == pytest.approx(pooled)
    values = [number(g["metrics"]["accuracy"]) for g in at["language"]]
    assert "accuracy by language (utterances): ar 180, fr 180." in report.text
    assert ["direct_mix", *values, number(pooled), "–"] in [line.split() for line in report.text.splitlines()]
    assert (report.document["unit"], report.document["normaliser"]) == ("share of utterances", None)


def test_the_transfer_matrix_has_a_value_for_every_condition_and_language(tmp_path):
    tags = ["de-DE", "fr-FR", "vi-VN"]

    def spoken(name: str, share: float, trained: tuple[str, ...], **more) -> ReportRow:
        row = _cell(name, share, 0, "direct_mix", **more)
        runs = {s: [{**r, "language": tags[n % 3]} for n, r in enumerate(run)] for s, run in row.runs.items()}
        return replace(row, runs=runs, languages=trained)

    rows = [
        spoken("fr alone", 0.5, ("fr-FR",), source_recordings=1151, settings={"source.speech_fraction": 0.1}),
        spoken("fr and de", 0.6, ("de", "fr"), source_recordings=1151, settings={"source.speech_fraction": 0.2}),
    ]
    report = write_report(tmp_path, rows, "accuracy", study="s", base="b")
    matrix = report.document["transfer"]
    assert matrix["languages"] == tags
    alone, both = matrix["rows"]
    assert [cell["seen"] for cell in alone["languages"]] == [False, True, False]
    assert [cell["seen"] for cell in both["languages"]] == [True, True, False]
    for row, found in zip(rows, matrix["rows"], strict=True):
        by_hand = []
        for tag in tags:
            right = [r["counts"]["accuracy"][0] for run in row.cell() for r in run if r["language"] == tag]
            by_hand.append(sum(right) / len(right))
        assert [cell["value"] for cell in found["languages"]] == pytest.approx(by_hand)
        assert found["mean"] == pytest.approx(sum(by_hand) / 3)
        assert all(cell["ci_low"] <= cell["value"] <= cell["ci_high"] for cell in found["languages"])
        assert {cell["n"] for cell in found["languages"]} == {120}
        unseen = [v for v, cell in zip(by_hand, found["languages"], strict=True) if not cell["seen"]]
        assert found["unseen"] == pytest.approx(sum(unseen) / len(unseen))
    de, fr, vi = (number(cell["value"]) for cell in alone["languages"])
    printed = [line.split() for line in report.text.splitlines()]
    assert ["fr", "alone", f"({de})", fr, f"({vi})", number(alone["mean"]), number(alone["unseen"])] in printed
    assert "+1,151" in report.text.replace("0+", "+")
    assert ("fr alone", "fr and de") in [(c["a"], c["b"]) for c in report.document["comparisons"]]
    assert write_report(tmp_path, [_cell("a", 0.5, 0)], "accuracy", study="s", base="b").document["transfer"] is None


def test_values_and_verdicts_are_those_of_compare(ladder, tmp_path):
    report = write_report(tmp_path, ladder, "accuracy", study="commands", base="tiny", notes=["A note."])
    document = json.loads((tmp_path / "report.json").read_text())
    assert document == json.loads(json.dumps(report.document))
    # 5 cells × 2 seeds and 3 controls without seeds
    assert len(document["rows"]) == 13
    assert {r["row"] for r in document["rows"] if r["seed"] == 2} == {r.name for r in ladder[:5]}
    for entry in document["rows"]:
        assert entry["n"] == SPEAKERS * EACH
        assert 0 <= entry["ci_low"] <= entry["value"] <= entry["ci_high"] <= 1
        assert {"scheme", "speech_fraction", "speech_presentations", "metric"} <= entry.keys()
    run = ladder[1].runs[2]
    value = next(r["value"] for r in document["rows"] if (r["row"], r["seed"]) == ("speech_only", 2))
    assert value == pytest.approx(sum(r["counts"]["accuracy"][0] for r in run) / len(run))
    q = next(c for c in document["comparisons"] if (c["a"], c["b"]) == ("synthetic_only", "speech_only"))
    expected = compare(ladder[0].cell(), ladder[1].cell(), "accuracy")
    assert (q["effect"], q["ci"], q["verdict"]) == (
        expected.effect, [expected.ci_low, expected.ci_high], expected.verdict,
    )  # fmt: skip
    assert document["speakers"] == SPEAKERS
    assert document["reference"] == "linear_probe"
    assert document["notes"][0] == "A note."
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(PNG)
    assert report.text == (tmp_path / "report.txt").read_text()


def test_runs_that_share_a_subset_of_the_recordings_are_one_draw(tmp_path):
    keys = ["1/1", "1/2", "2/1", "2/2"]
    runs = {key: _run(0.5 + 0.1 * (key[0] == "2") + 0.01 * (key[2] == "2"), key) for key in keys}
    plain = [
        ReportRow("direct_mix", "direct_mix", 200, None, 12.0, runs),
        ReportRow("direct_mix, text twin", "text twin", 200, None, 12.0, runs, "control"),
        _cell("speech_only", 0.3, 200),
    ]
    drawn = [replace(row, subsets={key: int(key[0]) for key in keys}) for row in plain[:2]] + plain[2:]
    wide, narrow = score_rows(drawn, "accuracy"), score_rows(plain, "accuracy")
    pooled = [scored.pooled["direct_mix"] for scored in (wide, narrow)]
    for a, b in (pooled, [scored.questions[0].answer for scored in (wide, narrow)]):
        assert a.ci_high - a.ci_low > 1.5 * (b.ci_high - b.ci_low)
        assert "a draw is a subset of the recordings" in a.method
    assert findings(wide) != findings(narrow)
    failed = [{"row": "direct_mix", "seed": "2/3", "reason": "invalid_data"}]
    document = write_report(tmp_path, drawn, "accuracy", study="s", base="b", failed=failed).document
    assert document["failed"] == failed
    assert any("its seeds averaged (4 runs)" in note for note in document["notes"])


def questions(rows) -> list[tuple[str, str]]:
    return [(q.a.name, q.b.name) for q in score_rows(rows, "accuracy").questions if q.asked]


def test_questions_are_between_rows_that_differ_in_one_thing(ladder):
    assert set(questions(ladder)) == {
        ("synthetic_only", "speech_only"), ("synthetic_only", "direct_mix"), ("synthetic_only", "curriculum"),
        ("speech_only", "direct_mix"), ("speech_only", "curriculum"), ("direct_mix", "curriculum"),
        ("speech_only", "speech_only, all"),
        # not the cell on 2,160: the probe learnt from 200
        ("linear_probe", "speech_only"), ("linear_probe", "direct_mix"), ("linear_probe", "curriculum"),
    }  # fmt: skip
    assert len(questions(ladder)) == 10


def test_the_last_cell_of_a_scheme_is_not_asked_against_the_first_of_the_next():
    cells = [_cell(f"{scheme} {n}", 0.5, n, scheme) for scheme in ("direct_mix", "curriculum") for n in (50, 200, 100)]
    assert set(questions([_cell("text_only", 0.4, 0), *cells])) == {
        ("direct_mix 50", "direct_mix 100"), ("direct_mix 100", "direct_mix 200"),
        ("curriculum 50", "curriculum 100"), ("curriculum 100", "curriculum 200"),
        *((f"direct_mix {n}", f"curriculum {n}") for n in (50, 100, 200)),
        ("text_only", "direct_mix 50"), ("text_only", "curriculum 50"),
    }  # fmt: skip


def test_other_settings_are_asked_one_at_a_time():
    cells = [
        _cell(f"{s} {r} {lr}", 0.5, 200, s, settings={"scheme": s, "tuning.rank": r, "optimizer.peak_lr": lr})
        for s in ("sft", "auto") for r in (4, 8, 16) for lr in (1, 2)
    ]  # fmt: skip
    asked = set(questions(cells))
    assert asked >= {("sft 4 1", "sft 4 2"), ("sft 4 1", "sft 8 1"), ("sft 8 1", "sft 16 1"), ("sft 8 2", "auto 8 2")}
    assert not asked & {("sft 4 1", "sft 16 1"), ("sft 4 2", "sft 8 1"), ("sft 16 2", "auto 4 1")}


def test_the_exposure_control_is_asked_against_the_curriculum_and_plain_mixing():
    control = _cell("direct_mix, exposure of curriculum", 0.6, 200, "direct_mix")
    rows = [_cell("direct_mix", 0.5, 200), _cell("curriculum", 0.6, 200), _cell("speech_only", 0.4, 200), control]
    asked = set(questions(rows))
    assert {(control.name, "curriculum"), ("direct_mix", "curriculum"), ("direct_mix", control.name)} <= asked
    assert not {("speech_only", control.name), (control.name, "speech_only")} & asked


def test_rows_that_answer_alike_are_not_asked_about():
    one = _cell("direct_mix", 0.5, 200)
    other = ReportRow("speech_only", "speech_only", 200, None, 12.0, {k: list(v) for k, v in one.runs.items()})
    assert questions([one, other]) == []
    assert len(table(score_rows([one, other], "accuracy"))) == 4


def test_holm_is_over_the_questions_only(ladder):
    scored = score_rows(ladder, "accuracy", reference="majority")
    asked = [q for q in scored.questions if q.asked]
    smallest = min(asked, key=lambda q: q.answer.p)
    assert smallest.p_holm == pytest.approx(min(1.0, smallest.answer.p * len(asked)))
    assert len(asked) < len(scored.questions)


def test_sentences(ladder):
    said = findings(score_rows(ladder, "accuracy"))
    assert any(s.startswith("speech_only beats synthetic_only by .34 (") for s in said)
    assert any(s.startswith("curriculum against direct_mix: no evidence of a difference (") for s in said)
    assert any(s.startswith("speech_only, all beats speech_only") and "2,160 against 200" in s for s in said)
    # On as many recordings the probe is better than all that was tuned; the cell on 2,160 is no excuse.
    winner = [s for s in said if "better than every tuned row" in s]
    assert len(winner) == 1
    assert winner[0].startswith("linear_probe is better than every tuned row on at most 200 recordings: .75, ")


def test_no_simpler_row_is_praised_where_none_is_better(ladder):
    said = findings(score_rows([*ladder[:5], _control("linear_probe", 0.5, 200)], "accuracy"))
    assert not [s for s in said if "every tuned row" in s]


def test_a_text_twin_is_no_simpler_row(ladder):
    twin = _control("direct_mix, text twin", 0.97, 200)
    for run in twin.runs.values():
        for row in run:
            row["modality"] = "text"
    scored = score_rows([*ladder, twin], "accuracy")
    assert [s.split(" is ")[0] for s in findings(scored) if "every tuned row" in s] == ["linear_probe"]
    assert twin not in scored.baselines()
    assert len(table(scored)) == 2 + len(ladder) + 1
    # Where the study itself is about text, text rows are its baselines.
    text_only = score_rows([ReportRow("t", "t", 0, None, 0, twin.runs), twin, *ladder[5:7]], "accuracy")
    assert twin in text_only.baselines()


def test_lower_is_better_for_error_rates():
    def rows(words: float, stream: str) -> list[dict]:
        wrong = _run(words, stream, metric="wer")
        return [{**r, "counts": {"wer": r["counts"]["wer"]}} for r in wrong]

    cells = [
        ReportRow(name, name, 0, None, 0.0, {1: rows(share, name)}) for name, share in (("a", 0.6), ("b", 0.2))
    ]
    scored = score_rows(cells, "wer")
    assert findings(scored)[0].startswith("b beats a by .40 less wer (")
    assert table(scored)[-1].endswith("better")
    assert scored.reference.name == "a"


def test_table_fits_and_names_give_way(ladder):
    lines = table(score_rows(ladder, "accuracy"), ["invalid_rate"])
    assert max(map(len, lines)) <= WIDTH
    assert len({line.index("verdict") if "verdict" in line else 0 for line in lines}) == 2
    long = [
        _cell("direct_mix per_label=5 tuning.rank=16 optimizer.peak_lr=0.0003 and on", 0.5, 200, "direct_mix"),
        _cell("curriculum per_label=5 tuning.rank=16 optimizer.peak_lr=0.0003 and on", 0.6, 200, "custom"),
    ]
    lines = table(score_rows(long, "accuracy"), ["invalid_rate"])
    assert max(map(len, lines)) <= WIDTH
    assert "…" in lines[2]


def test_names_come_before_metrics_beside_and_a_spare_scheme():
    names = ["text_only speech_fraction=2%", "direct_mix speech_fraction=2%, 3 seeds"]
    cells = [_cell(name, 0.5 + n / 9, 1, name.split()[0]) for n, name in enumerate(names)]
    rows = [*cells, ReportRow("majority", "constant", 0, None, 0.0, {None: cells[0].runs[1]}, "control")]
    beside = ["invalid_rate", "intent_accuracy", "wer_utterance_mean"]
    lines = table(score_rows(rows, "accuracy"), beside)
    assert max(map(len, lines)) <= WIDTH
    assert any(line.startswith(names[0]) for line in lines)
    assert any(line.startswith(names[1][:33]) for line in lines)
    assert not {"scheme", "wer_utterance_mean"} & set(lines[0].split())
    short = [ReportRow(row.name[:5], "sft", 1, None, 1.0, row.runs) for row in rows]
    lines = table(score_rows(short, "accuracy"), beside)
    assert {"invalid_rate", "scheme"} <= set(lines[0].split())
    assert "wer_utterance_mean" not in lines[0]
    assert max(map(len, lines)) <= WIDTH


def test_difference_column_is_row_minus_reference_whichever_was_asked_first(ladder):
    scored = score_rows(ladder, "accuracy", reference="direct_mix")
    q = next(q for q in scored.questions if (q.a.name, q.b.name) == ("speech_only", "direct_mix"))
    line = next(line for line in table(scored) if line.startswith("speech_only "))
    assert number(-q.answer.effect, sign=True) in line
    assert line.endswith({"better": "worse", "no evidence": "no evidence"}[q.answer.verdict])


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.637, False, ".64"), (1.011, False, "1.01"), (-0.04, True, "−.04"), (-0.001, True, "+.00"),
     (0.35, True, "+.35"), (float("nan"), False, "–")],
)  # fmt: skip
def test_numbers(value, sign, text):
    assert number(value, sign=sign) == text


def test_labels_do_not_overlap():
    wanted = [0.02, 0.03, 0.79, 0.78, 0.025]
    placed = apart(wanted, 0.05, low=0.02)
    ordered: Sequence[float] = sorted(placed)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 0.05 - 1e-9
    assert ordered[0] >= 0.02
    assert np.argsort(placed).tolist() == np.argsort(wanted).tolist()
    assert apart([0.1, 0.5], 0.05) == [0.1, 0.5]


def test_refusals(ladder):
    with pytest.raises(ValueError, match="'majority' appears twice"):
        score_rows([*ladder, ladder[5]], "accuracy")
    with pytest.raises(ValueError, match="reference 'chance' is not a row; rows: synthetic_only"):
        score_rows(ladder, "accuracy", reference="chance")
    rows = _run(0.5, "x")
    mixed = ReportRow("x", "x", 0, None, 0, {None: [rows[0], {**rows[1], "modality": "text"}]})
    with pytest.raises(ValueError, match="mixes"):
        score_rows([mixed], "accuracy")
    short = ReportRow("short", "short", 0, None, 0, {1: rows[:-1]})
    with pytest.raises(ValueError, match="u359"):
        score_rows([ladder[0], short], "accuracy")
    with pytest.raises(ValueError, match="at least one row"):
        score_rows([], "accuracy")


def test_importing_the_report_does_not_load_matplotlib():
    import subprocess
    import sys

    code = "import sys, trainer.report; assert not {'matplotlib', 'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
