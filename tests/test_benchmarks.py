"""What the benchmarks claim and can be told without a clock."""

from pathlib import Path

import pytest
import transformers

from benchmarks import flops, loss_curves


def test_a_step_costs_a_quarter_of_the_stock_step_or_less(tmp_path: Path):
    found = flops.of_prompt(250, 4, tmp_path, ["naive"])
    for key in ("linear", "total"):  # without attention, and with it
        assert found["naive"][key] / found["ours"][key] >= 4
    assert found["ours, cached"]["linear"] < found["ours"]["linear"]


def test_losses_are_those_of_a_plain_correct_loop_and_the_stock_trainers_are_not():
    found = loss_curves.curves(2, batch=4, parts=2)
    assert loss_curves.worst(found) <= loss_curves.EQUAL
    for key in ("loss", "grad_norm"):
        assert [e[key] for e in found["Trainer"]] == pytest.approx([e[key] for e in found["plain loop"]], rel=1e-4)
    factors = [loss_curves.inflation(found, key) for key in ("loss", "grad_norm")]
    if factors == pytest.approx([1, 1], rel=0.05):
        mended = f"transformers {transformers.__version__} accumulates gradients of Qwen2-Audio correctly (issue 47688)"
        pytest.skip(f"{mended}: benchmarks/loss_curves.py and the README must no longer say that it does not")
    assert factors == pytest.approx([2, 2], rel=0.05)
