import threading

import pytest

from trainer.ahead import Ahead


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_every_step_gets_its_own_in_order_and_again_when_repeated(depth):
    with Ahead(str, steps=4, size=3, depth=depth) as ahead:  # type: ignore[arg-type]
        for t in (0, 0, 1, 2, 2, 3):
            assert ahead.step(t) == [str(3 * t + k) for k in range(3)]


def test_later_steps_are_made_while_this_one_is_computed():
    later = threading.Event()

    def make(i):
        if i >= 2:
            later.set()
        return i

    with Ahead(make, steps=9, size=2, depth=1) as ahead:  # type: ignore[arg-type]
        assert ahead.step(0) == [0, 1]
        assert later.wait(30)


def test_nothing_is_made_beyond_the_stage_nor_twice():
    made = []
    with Ahead(made.append, steps=3, size=2, depth=9) as ahead:  # type: ignore[arg-type]
        for t in range(3):
            ahead.step(t)
    assert sorted(made) == list(range(6))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_by_the_step_that_it_belongs_to(depth):
    def make(i):
        if i == 3:
            raise ZeroDivisionError("three")
        return i

    with Ahead(make, steps=3, size=2, depth=depth) as ahead:  # type: ignore[arg-type]
        assert ahead.step(0) == [0, 1]
        with pytest.raises(ZeroDivisionError, match="three"):
            ahead.step(1)
