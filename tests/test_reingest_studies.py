"""A study of which a reingest could take in a part only."""

import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_server import ROOT, Service, a_study, posted, serving
from specs import corpus_folder
from test_api_studies import answered

from api.deps import COOKIE
from attune.cli import main
from db import records
from db.reingest import reingest
from trainer.corpus import Reader
from trainer.resolve import Resolved

LOST = {"some": {"text_only": [2], "direct_mix 4 per label": [1]}, "all": {"text_only": [1, 2],
        "direct_mix 4 per label": [1, 2], "majority": [0]}}  # fmt: skip


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """`begin(name)` is the API on a new and empty database, and the same store every time."""
    monkeypatch.chdir(ROOT)
    corpus_folder(tmp_path / "root" / "turns", texts=60, recordings=40, tests=60)

    def start(name: str):
        (tmp_path / name).mkdir()
        return serving(tmp_path / name, None, f"{ROOT}{os.pathsep}{tmp_path / 'root'}", store=str(tmp_path / "store"))

    return start


def begun(service: Service) -> dict[str, Any]:
    """A study with one seed of each cell done, all of it written down."""
    made = posted(service.http, "/v1/studies", a_study(also=[], controls=["majority"]))
    read = Reader(service.settings.roots)
    for cell, done, share in zip(made["cells"], (1, 2, 0), (0.3, 0.8, 0.0), strict=True):
        (job_id,) = [job["id"] for job in cell["jobs"] if job["seed"] == done]
        run = Resolved.model_validate(service.http.get(f"/v1/jobs/{job_id}").json()["resolved"])
        service.finish(job_id, answered(run, read(run.spec), share, cell["name"]))
    records.write(service.database, service.store)
    return made


def damage(service: Service, made: dict[str, Any], lost: dict[str, list[int]]) -> list[str]:
    """The jobs of these seeds cannot be read any more; their ids."""
    gone = [job["id"] for cell in made["cells"] for job in cell["jobs"] if job["seed"] in lost.get(cell["name"], [])]
    for job_id in gone:
        (Path(service.settings.store) / f"projects/{service.project}/jobs/{job_id}/job.json").write_text("{")
    return gone


def taken_in(service: Service, gone: list[str]) -> None:
    report = reingest(service.database, service.store, service.settings.code)
    assert [problem["id"] for problem in report.problems] == sorted(gone)
    assert report.taken["study"] == 1


def seen(service: Service, study: str, what: str = "") -> httpx2.Response:
    return service.http.get(f"/v1/studies/{study}{what}")


def shown(service: Service, study: str, monkeypatch) -> str:
    """What the dashboard's pages say; the command line asks the same service."""
    key = service.http.headers["Authorization"].partition(" ")[2]
    monkeypatch.setenv("ATTUNE_URL", service.url)
    monkeypatch.setenv("ATTUNE_API_KEY", key)
    pages = [httpx2.get(f"{service.url}/dashboard/studies/{study}{what}", headers={"Cookie": f"{COOKIE}={key}"})
             for what in ("", "/table")]  # fmt: skip
    assert [page.status_code for page in pages] == [200, 200]
    return "".join(page.text for page in pages)


def test_a_study_without_some_of_its_jobs_is_shown_as_far_as_it_goes(begin, monkeypatch, capsys):
    with begin("before") as service:
        made = begun(service)
        before = seen(service, made["id"], "/table").json()
        gone = damage(service, made, LOST["some"])
    with begin("after") as service:
        taken_in(service, gone)
        whole, table, report = (seen(service, made["id"], what).json() for what in ("", "/table", "/report"))
        assert whole["jobs"] == {"succeeded": 3}
        assert [[job["seed"] for job in cell["jobs"]] for cell in whole["cells"]] == [[1], [2], [0]]
        assert [note for job_id in gone for note in whole["notes"] if job_id in note] == whole["notes"][-2:]
        assert "text_only seed 2: its job" in whole["notes"][-2]
        assert table["rows"] == before["rows"]  # none of the lost ones had ended
        assert [(r["runs_done"], r["runs"]) for r in table["rows"]] == [(1, 2), (1, 2), (1, 1)]
        assert table["comparisons"] == before["comparisons"] != []
        assert set(whole["notes"]) <= set(table["notes"])
        assert set(table["notes"]) == set(report["report"]["notes"])
        assert gone[0] in report["text"]
        assert gone[0] in shown(service, made["id"], monkeypatch)
        assert main(["study", made["id"]]) == 0
        assert gone[0] in capsys.readouterr().out
        assert posted(service.http, f"/v1/studies/{made['id']}/cancel", None)["jobs"] == {"succeeded": 3}


def test_a_study_without_any_job_is_shown_without_numbers(begin, monkeypatch, capsys):
    with begin("before") as service:
        made = begun(service)
        gone = damage(service, made, LOST["all"])
    with begin("after") as service:
        taken_in(service, gone)
        whole, table = (seen(service, made["id"], what).json() for what in ("", "/table"))
        assert (whole["jobs"], [cell["jobs"] for cell in whole["cells"]]) == ({}, [[], [], []])
        assert (table["metric"], [row["value"] for row in table["rows"]]) == (None, [None] * 3)
        assert seen(service, made["id"], "/report").json()["error"]["code"] == "nothing_to_report"
        assert "None" not in shown(service, made["id"], monkeypatch)
        assert main(["study", made["id"]]) == 0
        assert "None" not in capsys.readouterr().out


def test_jobs_that_are_validated_again_say_nothing_of_the_metric(begin):
    """The first of the study's jobs never began: how it was resolved was in the database only."""
    with begin("before") as service:
        made = begun(service)
        before = seen(service, made["id"], "/table").json()
        gone = damage(service, made, {"text_only": [1]})
    with begin("after") as service:
        taken_in(service, gone)
        table = seen(service, made["id"], "/table").json()
        assert seen(service, made["id"]).json()["jobs"] == {"validating": 2, "succeeded": 2}
        assert table["metric"] == before["metric"]
        assert [r["value"] is None for r in table["rows"]] == [True, False, False]
