"""The embedded service loses its database: `attune reingest` brings it back, before `attune up` or beside it."""

import json

import pytest
from ray_start import free_port, until
from test_local import Place, spec  # noqa: F401  a fixture

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]


@pytest.fixture
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("instance"), free_port())
    yield made
    made.attune("down", "--now")
    assert made.processes() == {}


def lose(place: Place) -> None:
    """End the service, and its database with it."""
    place.json("down", "--now")
    files = [path for path in place.folder.iterdir() if path.name.startswith("attune.db")]
    assert files
    for path in files:
        path.unlink()


def seen(place: Place) -> dict[str, str]:
    """{job: status} as the command line sees them."""
    return {job["id"]: job["status"] for job in place.json("jobs")["data"]}


def test_jobs_come_back(place, spec):  # noqa: F811
    """Twice: first before the service is there again, then beside it."""
    place.up()
    ended, waiting = (place.json("submit", spec)["job"]["id"] for _ in range(2))
    until(lambda: set(seen(place).values()) == {"queued"}, 300)
    place.json("cancel", ended)
    left = place.folder / "store" / "projects"
    until(lambda: list(left.glob(f"*/jobs/{ended}/end.json")) and list(left.glob(f"*/jobs/{waiting}/job.json")), 120)
    before = place.json("job", ended)
    for beside_the_service in (False, True):
        lose(place)
        if beside_the_service:
            place.up()
            assert seen(place) == {}
        key = json.loads((place.folder / "client.json").read_text())["key"]
        report = place.json("reingest")
        assert (report["taken"]["job"], report["jobs"]) == (2, {"cancelled": 1, "validating": 1})
        assert report["problems"] == []
        same = json.loads((place.folder / "client.json").read_text())["key"] == key
        assert same == beside_the_service
        assert bool(report["keys"]) != beside_the_service
        place.up()
        until(lambda: seen(place) == {ended: "cancelled", waiting: "queued"}, 300)
        assert place.json("job", ended) == before
