"""Every preset in small through a real local service: `attune submit FILE --tiny`, trained and scored on Ray."""

from collections import Counter
from pathlib import Path

import pytest
from ray_start import free_port, until
from test_local import Place

from attune.client import Client

ROOT = Path(__file__).parent.parent
PRESETS = sorted((ROOT / "suites" / "presets").glob("*.yaml"))
ENDED = {"succeeded", "failed", "cancelled"}


@pytest.mark.process
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_every_preset_runs_in_small(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTUNE_THREADS", "1")
    place = Place(tmp_path / "instance", free_port())
    try:
        started = place.json("up", "--port", place.port)
        with Client(started["url"], started["key"]) as client:
            sent = {path.stem: place.attune("submit", path, "--tiny", cwd=ROOT) for path in PRESETS}
            assert {name: ran.stderr for name, ran in sent.items() if ran.returncode != 0} == {}
            ids = {name: ran.stdout.strip() for name, ran in sent.items()}
            until(lambda: all(set(found) <= ENDED for found in statuses(client, ids).values()), 1500)
            failed = [job for job in all_jobs(client) if job["status"] != "succeeded"]
            assert [(job["name"], job["status"], job["message"]) for job in failed] == []
            assert all(statuses(client, ids).values())
            for id_ in ids.values():
                if id_.startswith("study-"):
                    assert client.studies.report(id_)["text"]
            table = client.studies.table(ids["data-scheduling"])
            assert len(table["tasks"]) == 4
            assert len(table["ranks"]) == len([row for row in table["rows"] if row["kind"] == "cell"])
    finally:
        place.attune("down", "--now")
        assert place.processes() == {}


def statuses(client: Client, ids: dict[str, str]) -> dict[str, Counter]:
    """How many jobs of each preset are where."""
    return {
        name: Counter(client.studies.get(id_)["jobs"] if id_.startswith("study-") else [client.jobs.get(id_)["status"]])
        for name, id_ in ids.items()
    }


def all_jobs(client: Client) -> list[dict]:
    """Of the service."""
    page = client.jobs.list(limit=100)
    found = page["data"]
    while page["has_more"]:
        page = client.jobs.list(limit=100, after=page["last_id"])
        found += page["data"]
    return found
