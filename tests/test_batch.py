import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batch import Shared, assign, collate, groups
from trainer.views import Example

LENGTHS = st.lists(st.integers(2, 400), max_size=60)
AUDIO = 99


def example(name, prompt, answer, wave=None, asked=""):
    return Example(name, tuple(prompt), tuple(answer), wave, asked)


@st.composite
def steps(draw):
    """Lengths of a step's examples, and a cut of them into groups with a prefix that fits all members."""
    lengths = draw(LENGTHS)
    labels = [draw(st.integers(0, 2)) for _ in lengths]
    shared = []
    for label in sorted(set(labels)):
        members = sorted((i for i, n in enumerate(labels) if n == label), key=lambda i: (lengths[i], i))
        most = lengths[members[0]] - 1 if len(members) > 1 else 0
        shared.append(Shared(draw(st.integers(0, most)), tuple(members)))
    return lengths, shared


@given(steps(), st.integers(1, 2000), st.integers(1, 5))
def test_every_example_is_in_exactly_one_micro_batch_within_the_budget(step, budget, world):
    lengths, shared = step
    ranks = assign(lengths, shared, budget, world)
    assert len(ranks) == world
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(len(lengths)))
    group = {i: n for n, g in enumerate(shared) for i in g.members}
    for batch in (b for rank in ranks for b in rank):
        prefixes = sum(shared[n].length for n in {group[i] for i in batch})
        computed = prefixes + sum(lengths[i] - shared[group[i]].length for i in batch)
        assert len(batch) == 1 or computed <= budget


@given(steps(), st.integers(1, 5))
def test_ranks_get_alike_numbers_of_examples(step, world):
    sizes = [sum(len(b) for b in rank) for rank in assign(*step, 500, world)]
    assert max(sizes) - min(sizes) <= 1


@given(steps(), st.integers(1, 2000), st.integers(1, 5), st.booleans(), st.integers(1, 3))
def test_which_examples_a_rank_gets_does_not_depend_on_the_budget(step, budget, world, even, unit):
    """So it can read its recordings before the budget is known for good."""
    cuts = [assign(*step, n, world, even=even, unit=unit) for n in (budget, 10**6)]
    mine = [[{i for batch in rank for i in batch} for rank in ranks] for ranks in cuts]
    assert mine[0] == mine[1]


def test_budget_changes_the_cut_not_the_examples():
    lengths, shared = [30, 10, 20, 10], [Shared(0, (1, 3, 2, 0))]
    assert assign(lengths, shared, 10**6) == [[[1, 3, 2, 0]]]
    assert assign(lengths, shared, 1) == [[[1], [3], [2], [0]]]
    assert assign(lengths, shared, 39, 2) == [[[1, 2]], [[3], [0]]]
    assert assign(lengths, [Shared(9, (1, 3, 2, 0))], 43) == [[[1, 3, 2, 0]]]  # 9 once, then 1, 1, 11, 21
    assert assign(lengths, [Shared(9, (1, 3, 2, 0))], 42) == [[[1, 3, 2], [0]]]


def test_supervised_are_the_answer_and_nothing_else():
    rows = [example("a", [5, 6, 7], [8, 9], np.zeros(3)), example("b", [5, 4], [3, 2, 1])]
    batch = collate(rows, pad=0, audio_id=AUDIO)
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 4, 3, 2, 1]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4]
    found = [(r, a, t) for r, a, t in zip(batch.rows.tolist(), batch.at.tolist(), batch.targets.tolist(), strict=True)]
    assert found == [(0, 2, 8), (0, 3, 9), (1, 5, 3), (1, 6, 2), (1, 7, 1)]
    for _, place, target in found:
        assert batch.ids[place + 1] == target
    assert len(batch.waves) == 1
    assert (len(batch), batch.given) == (2, 10)


def test_who_sees_whom():
    batch = collate(
        [example("a", [5, 6, 7], [8]), example("b", [5, 6, 9, 9], [8]), example("c", [1], [2], asked="other")],
        pad=0, audio_id=AUDIO,
    )  # fmt: skip
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 9, 8, 1, 2]
    places = torch.arange(9)
    seen = batch.visible(places[:, None], places[None]).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_without_sharing_every_prompt_is_laid_out_whole():
    rows = [example("a", [5, 6], [7]), example("b", [5, 6, 6], [7])]
    batch = collate(rows, pad=0, audio_id=AUDIO, share=False)
    assert batch.ids.tolist() == [5, 6, 7, 5, 6, 6, 7]
    assert batch.given == len(batch.ids)


def test_a_pack_is_filled_up_by_tokens_that_nobody_sees():
    batch = collate([example("a", [5, 6], [7])], pad=3, audio_id=AUDIO, multiple=8)
    assert batch.ids.tolist() == [5, 6, 7, 3, 3, 3, 3, 3]
    places = torch.arange(8)
    assert not batch.visible(places[:3, None], places[None, 3:]).any()
    assert not batch.visible(places[3:, None], places[None, :3]).any()
    assert batch.at.tolist() == [1]


def test_shared_prefix_ends_before_recordings_and_answers():
    def shared(*prompts):
        return groups([example("x", p, [1]) for p in prompts], audio_id=AUDIO)[0].length

    assert shared([5, 6, 7, 8], [5, 6, 9, 8]) == 2
    assert shared([5, AUDIO, 7], [5, AUDIO, 7]) == 1  # placeholders look alike, recordings do not
    assert shared([5, 6, 7], [5, 6, 7]) == 2  # the last prompt position predicts the answer
    assert shared([5], [5, 6]) == 0
    assert shared([5, 6, 7]) == 0  # nobody to share with


def test_recordings_stand_in_the_order_of_their_placeholders():
    waves = [np.full(2, n) for n in range(3)]
    rows = [example(str(n), [5] * (4 - n) + [AUDIO], [7], w, asked=str(n % 2)) for n, w in enumerate(waves)]
    batch = collate(rows, pad=0, audio_id=AUDIO)
    assert [int(w[0]) for w in batch.waves] == [2, 0, 1]
    assert batch.rows.tolist() == [2, 0, 1]


def test_a_placeholder_in_an_answer_is_our_bug():
    with pytest.raises(AssertionError, match="placeholder"):
        collate([example("a", [5], [AUDIO])], pad=0, audio_id=AUDIO)
