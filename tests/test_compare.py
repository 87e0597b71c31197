"""The paired comparison: what it says on known data, what it refuses, and how often its intervals are right."""

import math

import numpy as np
import pytest
from scipy import stats

from trainer.compare import compare, holm, interval, smallest_detectable
from trainer.metrics import METRICS
from trainer.rng import philox


def rows(right, speakers=None, metric="accuracy"):
    """One seed's prediction rows from right (1) and wrong (0) answers, shape (utterances,)."""
    return [
        {
            "utterance": f"u{i:05}",
            "speaker": None if speakers is None else speakers[i],
            "counts": {metric: [float(r), 1.0]},
        }
        for i, r in enumerate(right)
    ]


def draws(seed, shape):
    """Standard normal numbers that no NumPy version changes: sums of twelve uniform words."""
    words = philox(seed, "test", 12 * math.prod(shape)) / 2.0**64
    return words.reshape(*shape, 12).sum(-1) - 6


def experiment(seed, *, speakers, per_speaker, seeds, effect=0.0, speaker_sd=0.25, seed_sd=0.05):
    """Two cells as the world makes them: speakers like one system more than the other, seeds are lucky or not.

    Threshold model of right answers; the true difference of accuracies is `true_effect`.
    """
    n = speakers * per_speaker
    who = np.repeat(np.arange(speakers), per_speaker)
    difficulty = draws(seed, (n,)) * 0.7
    cells = []
    for k in range(2):
        liking = draws(1000 * seed + k + 1, (speakers,)) * speaker_sd
        luck = draws(1000 * seed + k + 11, (seeds,)) * seed_sd
        noise = draws(1000 * seed + k + 21, (seeds, n))
        right = 0.8 + k * effect + liking[who] + difficulty + luck[:, None] + noise > 0
        cells.append([rows(r, [f"s{w}" for w in who]) for r in right])
    return cells


def true_effect(effect, speaker_sd=0.25, seed_sd=0.05):
    scale = math.sqrt(2 * (1 + 0.7**2 + speaker_sd**2 + seed_sd**2))
    return (math.erf((0.8 + effect) / scale) - math.erf(0.8 / scale)) / 2


class TestKnownAnswers:
    def test_speaker_blocks_give_the_paired_t_test_of_speaker_means(self):
        a = [1, 0, 1, 0, 0, 0, 1, 1] * 5
        b = [int(i % 8 < 4 + i // 8 % 4) for i in range(40)]
        who = [f"s{i // 8}" for i in range(40)]
        result = compare([rows(a, who)], [rows(b, who)], "accuracy")
        means = np.reshape(b, (5, 8)).mean(1) - np.reshape(a, (5, 8)).mean(1)
        low, high = stats.ttest_1samp(means, 0).confidence_interval(0.95)
        assert result.effect == pytest.approx(means.mean())
        assert (result.ci_low, result.ci_high) == (pytest.approx(low), pytest.approx(high))
        t = means.mean() / stats.sem(means)
        assert result.p == pytest.approx(2 * stats.t.sf(t, 4))
        assert (result.block, result.n_blocks, result.n_utterances) == ("speaker", 5, 40)
        assert result.verdict == ("better" if low > 0 else "no evidence")

    def test_verdict_respects_the_direction_of_the_metric_and_the_order_of_cells(self):
        a, b = rows([0] * 30 + [1] * 30, metric="wer"), rows([0] * 60, metric="wer")
        improved = compare([a], [b], "wer")
        assert (improved.effect, improved.verdict) == (-0.5, "better")
        assert improved.ci_high < 0
        worsened = compare([b], [a], "wer")
        assert (worsened.effect, worsened.verdict) == (0.5, "worse")

    def test_identical_predictions_are_no_evidence_with_an_interval(self):
        cell = [rows([1, 0] * 60)]
        result = compare(cell, cell, "accuracy")
        assert (result.effect, result.p, result.verdict) == (0, 1, "no evidence")
        assert -0.05 < result.ci_low < 0 < result.ci_high < 0.05

    def test_perfect_score_is_not_certain(self):
        known = interval([rows([1] * 720, [f"s{i % 6}" for i in range(720)])], "accuracy")
        unknown = interval([rows([1] * 720)], "accuracy")
        assert known.ci_low < unknown.ci_low < 1
        assert known.ci_high == unknown.ci_high == 1
        assert unknown.ci_low == pytest.approx(0.025 ** (1 / 720))  # Clopper and Pearson at n of n

    @pytest.mark.parametrize(("flipped", "verdict"), [(4, "no evidence"), (5, "no evidence"), (9, "better")])
    def test_a_handful_of_changed_utterances_is_no_evidence(self, flipped, verdict):
        a, b = [0] * flipped + [1] * (720 - flipped), [1] * 720
        result = compare([rows(a)], [rows(b)], "accuracy")
        assert result.verdict == verdict
        assert result.p >= 2.0 ** (1 - flipped)
        assert (result.ci_low <= 0) == (verdict == "no evidence")

    def test_margin_asks_for_more_than_a_difference(self):
        a, b = rows([0] * 40 + [1] * 400), rows([1] * 440)
        assert compare([a], [b], "accuracy").verdict == "better"
        assert compare([a], [b], "accuracy", margin=0.1).verdict == "no evidence"

    def test_values_are_ratios_of_sums_not_means_of_ratios(self):
        cell = [rows([1, 0, 1, 1])]
        cell[0][3]["counts"]["accuracy"] = [1.0, 7.0]
        assert interval(cell, "accuracy").value == pytest.approx(3 / 10)

    def test_more_seeds_in_one_cell_do_not_weigh_more(self):
        right = [1, 0, 1, 1, 0, 1]
        result = compare([rows(right)] * 3, [rows(right)], "accuracy")
        assert result.effect == 0
        assert "seeds 3 and 1" in result.method

    def test_vector_counts(self):
        labels = METRICS["macro_f1"]
        gold = ["x", "y"] * 50
        guess = ["x", "y", "y", "y"] * 25
        counts = [
            [float(g == p == k) for k in "xy"] + [float(p == k != g) for k in "xy"] + [float(g == k != p) for k in "xy"]
            for g, p in zip(gold, guess, strict=True)
        ]  # fmt: skip
        cell = [[{"utterance": str(i), "speaker": None, "counts": {"macro_f1": c}} for i, c in enumerate(counts)]]
        result = interval(cell, "macro_f1")
        assert result.value == labels.value(np.sum(counts, axis=0)) == pytest.approx((2 / 3 + 4 / 5) / 2)
        assert result.ci_low < result.value < result.ci_high


class TestSubsetsOfTheRecordings:
    """Runs on one subset of the recordings share its luck: they are one draw, however many their seeds."""

    @staticmethod
    def run(share):
        """Five speakers with ten utterances each, all right equally often: only runs differ."""
        return rows([i % 10 < 10 * share for i in range(50)], [f"s{i // 10}" for i in range(50)])

    def test_the_interval_is_the_t_interval_of_subset_means(self):
        runs, subsets = [self.run(share) for share in (0.5, 0.7, 0.2, 0.4)], [7, 7, 8, 8]
        result = compare([self.run(0.0)], runs, "accuracy", subsets=(None, subsets))
        half = stats.t.ppf(0.975, 1) * math.sqrt(((0.6 - 0.45) ** 2 + (0.3 - 0.45) ** 2) / 1 / 2)
        assert result.effect == pytest.approx(0.45)
        assert (result.ci_low, result.ci_high) == (pytest.approx(0.45 - half), pytest.approx(0.45 + half))
        assert result.n_seeds == (1, 4)
        assert "draws 1 and 2" in result.method
        assert "a draw is a subset of the recordings, its seeds averaged (1 and 4 runs)" in result.method
        alone = compare([self.run(0.0)], runs, "accuracy")
        assert alone.ci_high - alone.ci_low < half  # four draws: too sure by more than half

    def test_a_seed_more_in_a_subset_is_no_draw_more(self):
        u, v = self.run(0.6), self.run(0.3)
        once = interval([u, v], "accuracy")
        for runs, subsets in (([u, u, v, v], "aabb"), ([u, u, u, v], "aaab"), ([v, u, v, u], "baba")):
            found = interval(runs, "accuracy", subsets=subsets)
            assert (found.value, found.ci_low) == (pytest.approx(once.value), pytest.approx(once.ci_low))
            assert f"2 draws; a draw is a subset of the recordings, its seeds averaged ({len(runs)}" in found.method

    def test_with_one_subset_or_one_seed_in_each_all_is_as_without(self):
        runs = [self.run(share) for share in (0.5, 0.7, 0.2)]
        for subsets in ([4, 4, 4], [1, 2, 3], None):
            assert interval(runs, "accuracy", subsets=subsets) == interval(runs, "accuracy")

    def test_pairing_counts_draws(self):
        runs = [self.run(share) for share in (0.5, 0.7, 0.2, 0.4)]
        with pytest.raises(ValueError, match="a has 4, b has 2"):
            compare(runs, runs, "accuracy", paired_seeds=True, subsets=(None, [1, 1, 2, 2]))
        both = ([1, 1, 2, 2], [1, 1, 2, 2])
        assert "2 draws, paired" in compare(runs, runs, "accuracy", paired_seeds=True, subsets=both).method


class TestMethodSaysWhatWasDone:
    def test_unknown_speakers(self):
        assert "speakers unknown: utterances as blocks" in interval([rows([1, 0, 1])], "accuracy").method

    def test_one_speaker(self):
        result = interval([rows([1, 0, 1], ["a"] * 3)], "accuracy")
        assert result.blocks == 3
        assert "one speaker" in result.method

    def test_seeds(self):
        one, two = [rows([1, 0, 1, 1])], [rows([1, 0, 1, 1]), rows([1, 1, 1, 0])]
        assert "one seed: training randomness not included" in compare(one, one, "accuracy").method
        assert "2 and 2 seeds, independent" in compare(two, two, "accuracy").method
        assert "2 seeds, paired" in compare(two, two, "accuracy", paired_seeds=True).method

    def test_bootstrap_for_many_blocks_of_one_seed(self):
        cell = [rows([1, 0] * 50)]
        assert "percentile bootstrap" in interval(cell, "accuracy").method
        assert "t interval" in interval(cell * 2, "accuracy").method
        assert "t interval" in interval([rows([1, 0] * 15)], "accuracy").method

    def test_text_rows_borrow_the_speakers_of_their_speech_twins(self):
        speech = rows([1, 0, 1, 0], ["a", "a", "b", "b"])
        assert compare([rows([1, 1, 1, 0])], [speech], "accuracy").block == "speaker"


class TestRefusals:
    def test_missing_utterances_are_counted_and_named(self):
        with pytest.raises(ValueError, match=r"4 utterances .*: u00002, u00003, u00004, \.\.\."):
            compare([rows([1] * 6)], [rows([1] * 2)], "accuracy")
        with pytest.raises(ValueError, match="1 utterances"):
            interval([rows([1] * 3), rows([1] * 2)], "accuracy")

    def test_repeated_utterance(self):
        with pytest.raises(ValueError, match="'u00000' occurs twice"):
            interval([rows([1, 1]) + rows([1])], "accuracy")

    def test_metric_that_was_not_counted(self):
        with pytest.raises(ValueError, match=r"no counts of 'wer' .it has: accuracy"):
            interval([rows([1, 1])], "wer")

    def test_too_little(self):
        with pytest.raises(ValueError, match="no seeds"):
            interval([], "accuracy")
        with pytest.raises(ValueError, match="at least 2 utterances"):
            interval([rows([1])], "accuracy")

    def test_nothing_counted(self):
        cell = [rows([0, 0], metric="intent_accuracy")]
        for row in cell[0]:
            row["counts"]["intent_accuracy"] = [0.0, 0.0]
        with pytest.raises(ValueError, match="nothing was counted"):
            interval(cell, "intent_accuracy")

    def test_pairing_unequal_numbers_of_seeds(self):
        cell = rows([1, 0])
        with pytest.raises(ValueError, match="a has 2, b has 1"):
            compare([cell, cell], [cell], "accuracy", paired_seeds=True)


class TestHowOftenItIsRight:
    """Simulated experiments: the error of the interval over repetitions, with speakers and seeds drawn anew.

    Ten times longer simulations gave 0.95 to 0.975; the bound lies three standard errors below 0.95.
    """

    @pytest.mark.parametrize(
        ("speakers", "per_speaker", "seeds", "effect"),
        [(6, 120, 2, 0.0), (6, 120, 2, 0.2), (6, 120, 1, 0.0), (50, 12, 2, 0.0), (50, 12, 1, 0.0)],
    )
    def test_coverage(self, speakers, per_speaker, seeds, effect):
        # One seed says nothing about training randomness: it is right when there is none.
        seed_sd = 0.15 if seeds > 1 else 0.0
        truth = true_effect(effect, seed_sd=seed_sd)
        hits = []
        for run in range(150):
            a, b = experiment(run, speakers=speakers, per_speaker=per_speaker, seeds=seeds, effect=effect,
                              seed_sd=seed_sd)  # fmt: skip
            result = compare(a, b, "accuracy", resamples=400)
            hits.append(result.ci_low <= truth <= result.ci_high)
        assert np.mean(hits) >= 0.9

    def test_interval_that_ignores_speakers_fails(self):
        # The reason for blocks: the same data without speakers.
        hits = []
        for run in range(60):
            cells = experiment(run, speakers=6, per_speaker=120, seeds=1, seed_sd=0.0)
            for row in (row for cell in cells for seed in cell for row in seed):
                row["speaker"] = None
            result = compare(cells[0], cells[1], "accuracy", resamples=200)
            hits.append(result.ci_low <= 0 <= result.ci_high)
        assert np.mean(hits) < 0.8

    def test_false_alarms_and_power(self):
        verdicts: dict[float, list[str]] = {}
        for effect in (0.0, 0.6):
            verdicts[effect] = []
            for run in range(100):
                a, b = experiment(run, speakers=12, per_speaker=30, seeds=2, effect=effect)
                verdicts[effect].append(compare(a, b, "accuracy").verdict)
        assert verdicts[0.0].count("no evidence") >= 92
        assert verdicts[0.6].count("better") >= 75


class TestDeterminism:
    def test_bootstrap_is_a_function_of_its_seed(self):
        a, b = rows([1, 0, 0, 1] * 20), rows([1, 1, 0, 1] * 20)
        first = compare([a], [b], "accuracy", resamples=200)
        assert compare([a], [b], "accuracy", resamples=200) == first
        assert compare([a], [b], "accuracy", resamples=200, seed=1).ci_low != first.ci_low

    def test_order_of_rows_does_not_matter(self):
        right, who = [1, 0, 0, 1, 1] * 8, [f"s{i % 4}" for i in range(40)]
        cell = rows(right, who)
        turned = compare([cell[::-1]], [rows([1] * 40, who)], "accuracy")
        straight = compare([cell], [rows([1] * 40, who)], "accuracy")
        assert (turned.effect, turned.p) == (pytest.approx(straight.effect), pytest.approx(straight.p))


class TestHolm:
    def test_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_never_below_the_given_nor_above_one(self):
        assert holm([]) == []
        assert holm([0.9, 0.8]) == [1.0, 1.0]


class TestSmallestDetectable:
    def test_agrees_with_a_simulated_experiment(self):
        # 12 speakers x 30: at the difference it names, about 80 % of experiments find it.
        n, blocks, base = 360, 12, 0.7
        size = smallest_detectable(n, blocks, base, agreement=0.0, intraclass=0.0)
        who = [f"s{i % blocks}" for i in range(n)]
        found = 0
        for run in range(150):
            uniform = philox(run, "power", 2 * n).reshape(2, n) / 2.0**64
            a, b = rows(uniform[0] < base - size / 2, who), rows(uniform[1] < base + size / 2, who)
            found += compare([a], [b], "accuracy").verdict == "better"
        assert 0.70 <= found / 150 <= 0.90

    def test_more_data_or_speakers_detect_smaller_differences(self):
        base = smallest_detectable(720, 6, 0.8)
        assert smallest_detectable(1440, 6, 0.8) < base
        assert smallest_detectable(720, 60, 0.8) < base
        assert smallest_detectable(720, 6, 0.8, seeds=2, seed_sd=0.02) > base
        assert 0.01 < base < 0.2

    def test_impossible_designs_are_refused(self):
        for n, blocks, rate in ((10, 1, 0.5), (10, 20, 0.5), (10, 5, 1.0)):
            with pytest.raises(ValueError, match="smallest_detectable needs"):
                smallest_detectable(n, blocks, rate)
