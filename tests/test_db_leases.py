"""Of any number of schedulers one acts, and one that was away too long notices."""

from db_rows import at_once

from db import leases

pytest_plugins = ["databases"]


def take(database, holder: str, name: str = "beat", seconds: float = 30.0) -> int | None:
    with database.write() as session:
        return leases.take(session, name, holder, seconds)


def test_one_holds_it_until_it_runs_out(simulated, clock):
    assert take(simulated, "a") == 1
    assert take(simulated, "b") is None
    clock.at += 30
    assert take(simulated, "b") is None
    clock.at += 0.1
    assert take(simulated, "b") == 2
    assert take(simulated, "a") is None


def test_its_holder_renews_it(simulated, clock):
    """Without a new epoch: nobody acted in between."""
    for _ in range(5):
        assert take(simulated, "a") == 1
        clock.at += 20
    assert take(simulated, "b") is None


def test_a_late_holder_keeps_its_epoch_where_nobody_came(simulated, clock):
    take(simulated, "a")
    clock.at += 1000
    assert take(simulated, "a") == 1


def test_the_epoch_rises_with_every_change_of_hands(simulated, clock):
    """What a stale holder still does can be told by its number."""
    epochs = []
    for holder in ("a", "b", "a", "c"):
        epochs.append(take(simulated, holder))
        clock.at += 31
    assert epochs == [1, 2, 3, 4]


def test_given_back_it_is_free_at_once(simulated):
    take(simulated, "a")
    with simulated.write() as session:
        leases.give_back(session, "beat", "b")
    assert take(simulated, "b") is None  # it was not b's to give
    with simulated.write() as session:
        leases.give_back(session, "beat", "a")
    assert take(simulated, "b") == 2


def test_names_are_apart(simulated):
    assert (take(simulated, "a", "beat"), take(simulated, "b", "scale:pool")) == (1, 1)


def test_who_asks_at_once_one_gets_it(database):
    """The first time, when there is no row to lock, and later."""
    first = at_once([lambda h=h: take(database, h, seconds=0.0) for h in "abcdefgh"])
    assert not [r for r in first if isinstance(r, Exception)], first
    assert sorted(r for r in first if r is not None)[0] == 1
    results = at_once([lambda h=h: take(database, h, name="new") for h in "abcdefgh"])
    assert [r for r in results if r is not None] == [1]
    with database.write() as session:
        leases.give_back(session, "new", "abcdefgh"[next(n for n, r in enumerate(results) if r)])
    results = at_once([lambda h=h: take(database, h, name="new") for h in "ijklmnop"])
    assert [r for r in results if r is not None] == [2]
