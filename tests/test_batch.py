import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batch import assign, collate
from trainer.views import Example

LENGTHS = st.lists(st.integers(1, 400), max_size=60)


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 5))
def test_every_example_is_in_exactly_one_micro_batch_within_the_budget(lengths, budget, world):
    ranks = assign(lengths, budget, world)
    assert len(ranks) == world
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(len(lengths)))
    for batch in (b for rank in ranks for b in rank):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(LENGTHS, st.integers(1, 5))
def test_ranks_get_alike_numbers_of_examples(lengths, world):
    sizes = [sum(len(b) for b in rank) for rank in assign(lengths, 500, world)]
    assert max(sizes) - min(sizes) <= 1


def test_budget_changes_the_cut_not_the_examples():
    lengths = [30, 10, 20, 10]
    assert assign(lengths, 10**6) == [[[1, 3, 2, 0]]]
    assert assign(lengths, 1) == [[[1], [3], [2], [0]]]
    assert assign(lengths, 40, 2) == [[[1, 2]], [[3], [0]]]


def example(name, prompt, answer, wave=None):
    return Example(name, tuple(prompt), tuple(answer), wave)


def test_supervised_are_the_answer_and_nothing_else():
    rows = [example("a", [5, 6, 7], [8, 9], np.zeros(3)), example("b", [5, 4], [3, 2, 1])]
    batch = collate(rows, pad=0, audio_id=99)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [5, 4, 3, 2, 1]]
    found = {
        (r, c): t for r, c, t in zip(batch.rows.tolist(), batch.columns.tolist(), batch.targets.tolist(), strict=True)
    }
    assert found == {(0, 2): 8, (0, 3): 9, (1, 1): 3, (1, 2): 2, (1, 3): 1}
    for (r, c), target in found.items():
        assert batch.ids[r, c + 1] == target
        assert c + 1 >= len(rows[r].prompt)
    assert len(batch.waves) == 1


def test_padding_is_never_supervised():
    batch = collate([example("a", [5], [6]), example("b", [5, 5, 5], [6, 6])], pad=7, audio_id=99)
    assert batch.ids.tolist() == [[5, 6, 7, 7, 7], [5, 5, 5, 6, 6]]
    assert batch.targets.tolist() == [6, 6, 6]


def test_shared_prefix_ends_before_recordings_and_answers():
    def shared(*prompts):
        return collate([example("x", p, [1]) for p in prompts], pad=0, audio_id=99).shared

    assert shared([5, 6, 7, 8], [5, 6, 9, 8]) == 2
    assert shared([5, 99, 7], [5, 99, 7]) == 1  # placeholders look alike, recordings do not
    assert shared([5, 6, 7], [5, 6, 7]) == 2  # the last prompt position predicts the answer
    assert shared([5], [5, 6]) == 0


def test_a_placeholder_in_an_answer_is_our_bug():
    with pytest.raises(AssertionError, match="placeholder"):
        collate([example("a", [5], [99])], pad=0, audio_id=99)
