"""Lists: every job once, whatever page sizes, and only those that were asked for."""

import pytest
from db_rows import a_job, a_project, at_once, held

from db import jobs, keys
from db.attempts import digest
from db.ids import new_id
from db.models import Key

pytest_plugins = ["databases"]


def pages(database, project: str, limit: int, **asked) -> list[str]:
    """Names of all jobs, read page by page."""
    names, after, more = [], None, True
    while more:
        with database.read() as session:
            rows, more = jobs.page(session, project, after=after, limit=limit, **asked)
        assert len(rows) == limit or not more
        names += [r.name for r in rows]
        after = rows[-1].id if rows else None
    return names


@pytest.fixture
def project(database) -> str:
    """A project of seven jobs, two of a name, and another one beside it."""
    mine, other = a_project(database, "mine"), a_project(database, "other")
    with database.write() as session:
        for n, name in enumerate(["b", "a", "c", "a", "Über 100%", "d_1", "dx1"]):
            jobs.create(session, mine, {}, name=name, priority=n % 3, retries=0, actor="user:key-1")
        jobs.create(session, other, {}, name="hidden", priority=9, retries=0, actor="user:key-1")
    return mine


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("ascending", [False, True])
def test_every_sort_gives_every_job_once(database, project, limit, ascending):
    """Also where many are equal in what they are sorted by."""
    whole = {}
    for sort in jobs.SORTS:
        found = pages(database, project, limit, sort=sort, ascending=ascending)
        whole[sort] = pages(database, project, 100, sort=sort, ascending=ascending)
        assert found == whole[sort]
        assert sorted(found) == sorted(["b", "a", "c", "a", "Über 100%", "d_1", "dx1"])
    ordered = [n for n in whole["name"] if n[0] != "Ü"]
    assert ordered == sorted(ordered, reverse=not ascending)


@pytest.mark.parametrize(
    ("part", "found"),
    [("a", ["a", "a"]), ("A", ["a", "a"]), ("Über", ["Über 100%"]), ("BER 1", ["Über 100%"]), ("%", ["Über 100%"]),
     ("_", ["d_1"]), ("d_1", ["d_1"]), ("d", ["d_1", "dx1"]), ("hidden", []), ("\\", [])],
)  # fmt: skip
def test_a_part_of_the_name_finds_it(database, project, part, found):
    """Whatever signs it has: none of them is a pattern."""
    assert sorted(pages(database, project, 3, name=part)) == found


def test_filters_add_up(database):
    running = held(database).job
    job = a_job(database)
    with database.read() as session:
        project = jobs.find(session, job).project_id
        for asked, expected in (
            ({"status": ["queued"]}, {job}), ({"status": ["queued", "running"]}, {job, running}),
            ({"status": ["queued"], "name": "none"}, set()), ({"spec_hash": "0" * 64}, {job, running}),
            ({"spec_hash": "1" * 64}, set()), ({"study_id": "study-none"}, set()),
        ):  # fmt: skip
            assert {r.id for r in jobs.page(session, project, **asked)[0]} == expected
        assert jobs.counts(session, project) == {"queued": 1, "running": 1}
        assert jobs.waiting(session) == {"pool": 1}


def test_a_key_opens_its_project_until_it_is_revoked(database):
    """Only its hash is kept."""
    project, other = a_project(database, "mine"), a_project(database, "other")
    with database.write() as session:
        key, secret = keys.issue(session, project, "laptop", "write", "service")
    with database.write() as session:
        holder = keys.holder(session, secret)
        assert holder is not None
        assert (holder.project_id, holder.scopes, holder.actor) == (project, {"read", "write"}, f"user:{key.id}")
        assert session.get_one(Key, key.id).sha256 == digest(secret)
        assert keys.holder(session, secret[:-1]) is None
        assert not keys.revoke(session, other, key.id, "service")
        assert keys.revoke(session, project, key.id, "service")
        assert not keys.revoke(session, project, key.id, "service")
        assert keys.holder(session, secret) is None


def test_ids_sort_as_they_were_made():
    """Also many within a millisecond: the jobs of a study are made in one transaction."""
    made = [new_id("ftjob-") for _ in range(5000)]
    assert made == sorted(set(made))
    assert {len(i) for i in made} == {32}
    crowd = at_once([lambda: [new_id("") for _ in range(500)]] * 8)
    assert all(ids == sorted(ids) for ids in crowd)
    assert len({i for ids in crowd for i in ids}) == 8 * 500
