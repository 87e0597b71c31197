"""Two ranks as two processes: whichever fails, and wherever, both end alike and neither waits for the other."""

import json

import pytest
import toy

from trainer import context, evaluate, loop, views
from trainer import run as running
from trainer.fields import SpecError, problem
from trainer.ranks import Ranks, StoppedError, Turns, spawn
from trainer.result import Result
from trainer.run import run
from trainer.store import FolderStore
from trainer.tokens import DataError

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def failing(error, after=0):
    """A function that raises after so many calls; before that it does what `was` does."""

    def patch(module, name):
        was, left = getattr(module, name), [after]

        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise error
            return was(*arguments, **options)

        setattr(module, name, call)

    return patch


WRONG = DataError("a row that this rank cannot read")
# The rank that fails, the function in which it does, its error, after how many calls; the steps that are finished then.
PLACES = {
    "claiming": (0, running, "claim", OSError("no claim"), 0, 0),
    "planning": (0, context, "plan_stage", OSError("no plan"), 1, 0),
    "data": (1, running, "read_corpus", WRONG, 0, 0),
    "base": (1, running, "load_base", problem("base", "not on this machine", "b"), 0, 0),
    "first step": (1, views, "training_example", WRONG, 0, 0),
    "later step": (1, views, "training_example", WRONG, (8 + 4) * 3, 3),  # outlines of all, its half of the examples
    "bug in a step": (1, loop, "objective_loss", ZeroDivisionError("in a step"), 2, 2),
    "checkpoint": (0, loop.checkpoints, "write", OSError("disk full"), 1, 4),
    "evaluation": (1, evaluate, "generate", WRONG, 1, 9),
    "bug in evaluation": (0, evaluate, "generate", ZeroDivisionError("in a batch"), 0, 9),
}


def one_of_two(ranks, place, world, out):
    """Writes down how this rank's run ended."""
    victim, module, name, error, after, _ = PLACES[place]
    evaluate.BATCH_TOKENS = 1  # a batch per utterance
    if ranks.rank == victim:
        failing(error, after)(module, name)
    resolved, _ = toy.resolved(*world, execution={"prefetch": 0})  # in order, so that calls can be counted
    try:
        made = run(resolved, FolderStore(out / "store"), roots=[world[1]], ranks=ranks, threads=1)
        end = [made.outcome, made.reason, made.message]
    except Exception as raised:
        end = [type(raised).__name__, None, str(raised)]
    (out / f"rank-{ranks.rank}.json").write_text(repr(end))
    assert ranks.gather(ranks.rank) == [0, 1]  # they are still at the same place


@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_fails_alone_ends_both_alike(world, tmp_path, place):
    error, steps = PLACES[place][3], PLACES[place][5]
    spawn(one_of_two, 2, place, world, tmp_path, method="fork")
    ends = [(tmp_path / f"rank-{rank}.json").read_text() for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert str(error) in ends[0]
    store = FolderStore(tmp_path / "store")
    assert not store.exists("final.json")
    if place == "claiming":
        return
    result = Result.model_validate_json(store.get("attempts/1/result.json"))
    known = {DataError: "invalid_data", SpecError: "invalid_spec"}.get(type(error), "infrastructure")
    assert (result.outcome, result.reason, result.steps) == ("failed", known, steps)
    assert str(error) in result.message
    told = next(e for e in result.log_tail if e["kind"] == "error")
    assert "in call" in told["traceback"]  # the place, on whichever rank it is


# ---- orders during an evaluation


def ordered(ranks, action, world, out):
    """Rank 0 is told `action` during the evaluation of speech, after two of its batches."""
    evaluate.BATCH_TOKENS = 1  # a batch per utterance
    resolved, corpus = toy.resolved(*world)
    told, asked = [], []

    def control():
        evaluating = {"kind": "state", "state": "evaluating"} in told
        asked.append(evaluating)
        return action if ranks.rank == 0 and asked.count(True) > 2 else "continue"

    store = FolderStore(out / "store")
    made = run(resolved, store, told.append, control, corpus=corpus, ranks=ranks, threads=1)
    (out / f"rank-{ranks.rank}.json").write_text(json.dumps([made.outcome, made.reason, made.steps, len(asked)]))


@pytest.mark.parametrize(
    ("action", "end"), [("abort", ["failed", "user", 9]), ("checkpoint_and_exit", ["yielded", "yielded", 9])]
)
def test_an_order_during_an_evaluation_reaches_all_ranks(world, tmp_path, action, end):
    spawn(ordered, 2, action, world, tmp_path, method="fork")
    ends = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ends[0] == ends[1] == [*end, 9 + 3]
    store = FolderStore(tmp_path / "store")
    assert not store.exists("final.json")
    assert not store.list("attempts/1/predictions/")


def unequal(ranks, out):
    """Rank 0 has one thing to do, rank 1 five."""
    heard = []
    turns = Turns(ranks, lambda: "continue", heard.append)

    def work():
        for _ in range(1 + 4 * ranks.rank):
            turns(1)
        return ranks.rank

    assert turns.run(work) == ranks.rank
    (out / f"rank-{ranks.rank}.json").write_text(json.dumps(heard))


def test_a_rank_that_is_ready_waits_for_the_other(tmp_path):
    spawn(unequal, 2, tmp_path, method="fork")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == [2, 3, 4, 5, 6, 6]


def test_an_order_that_comes_when_all_is_done_puts_nothing_off():
    said = iter(["continue", "checkpoint_and_exit"])
    turns = Turns(Ranks(), lambda: next(said))
    assert turns.run(lambda: turns(1) or "made") == "made"
    said = iter(["continue", "abort"])
    with pytest.raises(StoppedError):
        turns.run(lambda: turns(1))


def test_an_error_goes_to_other_processes_whole():
    import pickle

    error = SpecError(problem("data.text", "no rows", 3).problems, job="a")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.problems, copy.job) == (str(error), error.problems, "a")
