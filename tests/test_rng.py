"""Golden vectors: the streams every plan hangs on must never change."""

import numpy as np
import pytest

from trainer import rng


def test_raw_words_are_the_ones_written_down():
    assert rng.philox(0, "epoch/text/0", 4).tolist() == GOLDEN_0
    assert rng.philox(17, "subset", 3).tolist() == GOLDEN_17


def test_a_longer_stream_begins_with_the_shorter_one():
    assert np.array_equal(rng.philox(3, "x", 1000)[:10], rng.philox(3, "x", 10))


def test_permutation_is_the_one_written_down_and_a_permutation():
    assert rng.permutation(0, "epoch/text/0", 12).tolist() == GOLDEN_PERMUTATION
    assert sorted(rng.permutation(5, "s", 1000).tolist()) == list(range(1000))


@pytest.mark.parametrize("other", [(1, "a"), (0, "b")])
def test_seed_and_stream_name_both_matter(other):
    assert not np.array_equal(rng.philox(0, "a", 8), rng.philox(*other, 8))


def test_seed_of_fits_a_torch_generator():
    assert 0 <= rng.seed_of(1, "dropout", 7) < 2**63
    assert rng.seed_of(1, "dropout", 7) != rng.seed_of(1, "dropout", 8)


GOLDEN_0 = [3920115520987456235, 10653370590559768217, 174277855843041814, 16614739193500438414]
GOLDEN_17 = [3563446380776040595, 11712046786023591024, 9099409783936539353]
GOLDEN_PERMUTATION = [2, 0, 4, 10, 7, 6, 8, 11, 9, 1, 5, 3]
