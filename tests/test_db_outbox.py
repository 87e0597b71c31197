"""Wake-ups leave with the rows they are about, and none is lost on the way."""

import contextlib

import pytest
from db_rows import at_once

from db import outbox
from db.outbox import KEPT_S, Wake, relay

pytest_plugins = ["databases"]


def wake(database, *keys: str) -> None:
    with database.write() as session:
        for key in keys:
            outbox.wake(session, "validate", key)


class Broker:
    """Takes messages until it fails."""

    def __init__(self, good: int = 10**9):
        self.good, self.got = good, []

    def __call__(self, message: Wake) -> None:
        if self.good == 0:
            raise ConnectionError("the broker is away")
        self.good -= 1
        self.got.append(message.key)


def test_what_was_committed_is_sent_once_and_in_order(database):
    broker = Broker()
    wake(database, "a", "b")
    with contextlib.suppress(RuntimeError), database.write() as session:
        outbox.wake(session, "validate", "never")
        session.flush()
        raise RuntimeError
    wake(database, "c")
    assert relay(database, broker) == 3
    assert broker.got == ["a", "b", "c"]
    assert relay(database, broker) == 0
    assert broker.got == ["a", "b", "c"]


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_broker_that_fails_half_way_gets_the_rest_later(database, good):
    """What it had is marked as sent, what it had not waits on."""
    broker, keys = Broker(good), ["a", "b", "c", "d"]
    wake(database, *keys)
    with pytest.raises(ConnectionError):
        relay(database, broker)
    assert broker.got == keys[:good]
    broker.good = 10
    assert relay(database, broker) == 4 - good
    assert broker.got == keys


def test_many_are_sent_in_portions(database):
    broker = Broker()
    wake(database, *map(str, range(25)))
    assert [relay(database, broker, limit=10) for _ in range(4)] == [10, 10, 5, 0]
    assert broker.got == list(map(str, range(25)))


def test_relays_at_once_send_everything(database):
    """Twice at most: ticks bear that, and none is left."""
    broker, keys = Broker(), list(map(str, range(20)))
    wake(database, *keys)
    results = at_once([lambda: relay(database, broker)] * 4)
    assert not [r for r in results if isinstance(r, Exception)], results
    assert set(broker.got) == set(keys)
    assert relay(database, broker) == 0


def test_sent_ones_are_forgotten_waiting_ones_never(simulated, clock):
    broker = Broker()
    wake(simulated, "sent")
    relay(simulated, broker)
    wake(simulated, "waits")
    clock.at += KEPT_S
    with simulated.write() as session:
        assert outbox.sweep(session) == 0
    clock.at += 1
    with simulated.write() as session:
        assert outbox.sweep(session) == 1
    clock.at += 1e9
    with simulated.write() as session:
        assert outbox.sweep(session) == 0
    relay(simulated, broker)
    assert broker.got == ["sent", "waits"]
