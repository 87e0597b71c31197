"""Events and orders between an attempt and the service, call by call."""

import pytest
from protocol_server import Attempt, ProtocolServer, until

import trainer.lease
from trainer.lease import FencedError, Lease, LeasedStore
from trainer.protocol import Api
from trainer.store import FolderStore
from trainer.terminal import Limit


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(trainer.lease, "RETRY_S", 0.01)
    found = ProtocolServer()
    yield found
    found.close()


@pytest.fixture
def lease(server, tmp_path):
    """A lease whose heartbeats the test sends itself, and what the service knows of it."""
    return a_lease(server, tmp_path)


def a_lease(server, folder, next_seq=1, **options):
    known = server.attempts["ftjob-1/1"] = Attempt("t", next_seq)
    claim = {"job_id": "ftjob-1", "attempt": 1, "token": "t", "lease_s": 60, "next_seq": next_seq}
    return Lease(Api(server.url), claim, folder, **options), known


def tell(lease, *steps):
    for step in steps:
        lease.sink({"kind": "step", "step": step, "loss": 1.0})


def test_every_event_arrives_once_though_answers_are_lost(server, lease):
    mine, known = lease
    tell(mine, 1, 2)
    server.lost_replies = 1
    assert not mine.beat()
    assert known.steps() == [1, 2]
    tell(mine, 3)
    assert mine.beat()
    assert (known.steps(), known.acked, len(mine.spool)) == ([1, 2, 3], 3, 0)
    assert all(event["at"] > 1e9 for event in known.events)


def test_a_heartbeat_says_where_the_attempt_is(lease):
    mine, known = lease
    assert mine.beat()
    mine.sink({"kind": "state", "state": "training", "step": 4, "steps": 9})
    tell(mine, 5)
    mine.beat()
    mine.sink({"kind": "note", "level": "info", "message": "no progress in itself"})
    mine.beat()
    said = [(b["state"], b["step"], b["first_seq"], len(b["events"])) for b in known.beats]
    assert said == [("loading", 0, 1, 0), ("training", 5, 1, 2), ("training", 5, 3, 1)]
    assert known.beats[2]["progress_at"] == known.beats[1]["progress_at"] >= known.beats[0]["progress_at"]


def test_numbers_go_on_where_the_service_says(server, tmp_path):
    mine, known = a_lease(server, tmp_path, next_seq=41)
    tell(mine, 1, 2)
    assert mine.beat()
    assert (known.beats[0]["first_seq"], known.acked) == (41, 42)


def test_events_that_the_service_forgot_are_sent_again(server, lease):
    mine, known = lease
    tell(mine, 1, 2, 3, 4)
    mine.beat()
    del known.events[2:]
    tell(mine, 5)
    assert not mine.beat()
    assert mine.beat()
    assert known.steps() == [1, 2, 3, 4, 5]


def test_a_full_disk_stops_neither_training_nor_events(server, lease, tmp_path, capfd):
    mine, known = lease
    tell(mine, 1)
    mine.spool.path.unlink()
    mine.spool.path.mkdir()  # as little to be written to as a full disk
    tell(mine, 2, 3)
    assert mine.beat()
    assert known.steps() == [1, 2, 3]
    assert capfd.readouterr().err.count("events are kept in memory only") == 1
    del known.events[1:]
    tell(mine, 4)
    assert not any(mine.beat() for _ in range(3))  # what it forgot, nobody has
    assert mine() == "continue"


def test_a_text_too_long_for_an_event_loses_its_middle(lease):
    mine, known = lease
    mine.sink({"kind": "error", "message": "a" * 30_000 + "z" * 30_000, "reason": "invalid_data"})
    mine.beat()
    text = known.events[0]["message"]
    assert len(text) < trainer.lease.LONGEST + 100
    assert (text[0], text[-1]) == ("a", "z")
    assert "40000 characters are left out" in text


def test_many_events_do_not_wait_for_the_next_heartbeat(server, tmp_path):
    mine, known = a_lease(server, tmp_path, beat_s=3600)
    mine.start()
    until(lambda: known.beats)
    tell(mine, *range(trainer.lease.MANY))
    until(lambda: len(known.events) == trainer.lease.MANY)
    mine.end("failed", "user", "")


def test_what_piled_up_goes_in_several_requests(server, lease, monkeypatch):
    mine, known = lease
    monkeypatch.setattr(trainer.lease, "MOST", 3)
    tell(mine, *range(1, 9))
    mine.end("succeeded", None, "", "ab")
    assert mine.acknowledged(10)
    assert known.steps() == list(range(1, 9))
    assert [len(beat["events"]) for beat in known.beats] == [3, 3]
    assert known.done["result_sha256"] == "ab"
    assert not mine.spool.path.exists()


def test_the_end_is_told_until_it_is_acknowledged(server, lease):
    mine, known = lease
    tell(mine, 1)
    server.lost_replies = 2
    mine.end("yielded", "timeout", "the time limit")
    assert mine.acknowledged(10)
    assert (known.done["outcome"], known.done["reason"], known.steps()) == ("yielded", "timeout", [1])
    assert sum(call.endswith("done") for call in server.calls) == 3


def test_the_end_can_be_asked_about_again(server, lease):
    mine, _ = lease
    mine.end("succeeded", None, "")
    server.close()
    assert not mine.acknowledged(0)
    server.open()
    assert mine.acknowledged(10)


def test_after_fencing_nothing_is_written_or_sent(server, lease, tmp_path):
    mine, known = lease
    store = LeasedStore(FolderStore(tmp_path / "out"), mine)
    store.put("a", b"1")
    tell(mine, 1)
    mine.beat()
    known.fenced = True
    assert not mine.beat()
    assert mine() == "abort"
    tell(mine, 2)
    assert len(mine.spool) == 0
    with pytest.raises(FencedError, match="ftjob-1/1 was taken away"):
        store.put("b", b"2")
    with pytest.raises(FencedError):
        store.put_file("b", __file__)
    assert (store.list(), store.get("a")) == (["a"], b"1")
    mine.end("failed", "user", "")
    with pytest.raises(FencedError):
        mine.acknowledged(10)
    assert known.steps() == [1]


def test_only_410_takes_an_attempt_away(server, lease):
    mine, _ = lease
    mine.name = "ftjob-1"  # no such path: 404, as of a proxy in front of a service that is being replaced
    assert not mine.beat()
    assert (mine(), mine.fenced) == ("continue", False)


def test_a_service_that_is_away_for_long_ends_the_attempt_with_a_checkpoint(server, tmp_path):
    now = [0.0]
    mine, _ = a_lease(server, tmp_path, detached_max_s=100, clock=lambda: now[0])
    mine.beat()
    now[0] = 500
    assert mine() == "continue"  # nothing has failed yet
    server.close()
    mine.beat()
    now[0] = 599
    assert mine() == "continue"
    now[0] = 600
    assert (mine(), mine.reason) == ("checkpoint_and_exit", None)
    server.open()
    mine.beat()
    assert mine() == "continue"


def test_the_strongest_order_counts(lease):
    mine, known = lease
    known.action = "checkpoint_and_exit"
    mine.beat()
    assert (mine(), mine.reason) == ("checkpoint_and_exit", None)
    known.action = "abort"
    mine.beat()
    assert mine() == "abort"


def test_a_time_limit_is_named(lease):
    mine, _ = lease
    mine.limit = Limit(0)
    assert (mine(), mine.reason) == ("checkpoint_and_exit", "timeout")


def test_a_heartbeat_that_breaks_ends_the_attempt(lease):
    mine, known = lease
    known.action = None
    mine.start()
    until(lambda: mine._broken)
    with pytest.raises(RuntimeError, match="heartbeat of ftjob-1/1 ended with an error"):
        mine()
