import threading

import pytest

from trainer.ahead import Ahead, Share


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_every_step_gets_its_own_in_order_and_again_when_repeated(depth):
    with Ahead(str, steps=4, size=3, depth=depth) as ahead:  # type: ignore[arg-type]
        for t in (0, 0, 1, 2, 2, 3):
            want = [str(3 * t + k) for k in range(3)]
            assert ahead.step(t) == (want, dict(enumerate(want)))


def test_later_steps_are_made_while_this_one_is_computed():
    later = threading.Event()

    def make(i):
        if i >= 2:
            later.set()
        return i

    with Ahead(make, steps=9, size=2, depth=1) as ahead:  # type: ignore[arg-type]
        assert ahead.step(0).outlines == [0, 1]
        assert later.wait(30)


def test_nothing_is_made_beyond_the_stage_nor_twice():
    made = []
    with Ahead(made.append, steps=3, size=2, depth=9) as ahead:  # type: ignore[arg-type]
        for t in range(3):
            ahead.step(t)
    assert sorted(made) == list(range(6))


@pytest.mark.parametrize("depth", [0, 2])
def test_a_rank_makes_its_own_examples_alone(depth):
    """All that it knows of the others is their outlines."""
    made = []

    def make(i):
        made.append(i)
        return f"example {i}"

    share = Share(lambda i: f"outline {i}", lambda outlines: range(1, len(outlines), 2))  # type: ignore[arg-type]
    with Ahead(make, steps=2, size=4, depth=depth, share=share) as ahead:  # type: ignore[arg-type]
        assert ahead.step(0) == ([f"outline {i}" for i in range(4)], {1: "example 1", 3: "example 3"})
        assert ahead.step(1) == ([f"outline {i}" for i in range(4, 8)], {1: "example 5", 3: "example 7"})
    assert sorted(made) == [1, 3, 5, 7]


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("of", ["example", "outline"])
def test_an_error_is_raised_by_the_step_that_it_belongs_to(depth, of):
    def make(i):
        if i == 3:
            raise ZeroDivisionError("three")
        return i

    share = Share(make, lambda outlines: range(len(outlines))) if of == "outline" else None  # type: ignore[arg-type]
    with Ahead(make if share is None else str, steps=3, size=2, depth=depth, share=share) as ahead:  # type: ignore
        assert len(ahead.step(0).made) == 2
        with pytest.raises(ZeroDivisionError, match="three"):
            ahead.step(1)
