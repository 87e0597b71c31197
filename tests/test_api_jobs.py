"""Jobs over HTTP: submitted once, planned as the command line plans, paged without loss, looked into."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import httpx2
import pytest
import yaml
from api_server import ROOT, Service, a_job, data_roots, posted, serving, until
from specs import corpus_folder

from attune.cli import main
from db import jobs, keys

pytest_plugins = ["databases", "api_service"]

SPEC = a_job()


@pytest.fixture
def mine(service: Service, request):
    """A client of a project of the test's own."""
    with service.client("write", request.node.name) as own:
        yield own


def test_a_dry_run_is_the_plan_of_the_command_line(service, tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    assert main(["plan", str(path), "--json", *data_roots(service)]) == 0
    planned = json.loads(capsys.readouterr().out)
    answered = posted(service.http, "/v1/jobs?dry_run=true", SPEC)
    for plan in (planned, answered):
        assert plan["seconds"].pop("this CPU") > 0  # measured anew each time
    assert answered == planned
    assert service.http.get("/v1/jobs?name=a").json()["data"] == []


def test_one_key_is_one_job_however_many_ask(service, mine):
    """64 threads at once, each with its own connection."""
    ready = threading.Barrier(64)
    key = mine.headers["Authorization"]

    def submit(_: int):
        with service.client(None, headers={"Authorization": key}) as own:
            ready.wait()
            return own.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "storm"})

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(submit, range(64)))
    assert {a.status_code for a in answers} == {200}, [a.text for a in answers if a.status_code != 200][:1]
    assert len({a.json()["id"] for a in answers}) == 1
    assert sum("idempotent-replayed" not in a.headers for a in answers) == 1
    assert len(mine.get("/v1/jobs").json()["data"]) == 1


def test_a_key_belongs_to_one_request(mine, service):
    first = mine.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"})
    reordered = dict(reversed(SPEC.items()))
    assert mine.post("/v1/jobs", json=reordered, headers={"Idempotency-Key": "k"}).json() == first.json()
    other = mine.post("/v1/jobs", json={**SPEC, "name": "b"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    with service.client("write", "elsewhere") as own:  # another project's keys are its own
        assert own.post("/v1/jobs", json={**SPEC, "name": "b"}, headers={"Idempotency-Key": "k"}).status_code == 200
    assert mine.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "x" * 256}).status_code == 400
    refused = mine.post("/v1/jobs", json={**SPEC, "nme": 1}, headers={"Idempotency-Key": "bad"})
    assert refused.status_code == 400
    assert mine.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "bad"}).status_code == 200


@pytest.mark.parametrize("sort", ["created_at", "priority", "name"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_lose_and_double_nothing_while_jobs_are_added(service, sort, order):
    """What is there before the first page is seen exactly once, whatever comes meanwhile."""
    with service.client("write", f"paging {sort} {order}") as own:
        with service.database.write() as session:
            project = keys.project(session, f"paging {sort} {order}").id
            made = [
                jobs.create(session, project, SPEC, name=f"n{n % 5}", priority=n % 3, retries=0, actor="user:t").id
                for n in range(23)
            ]
        seen, after = [], None
        while True:
            query = {"limit": 4, "sort": sort, "order": order, **({"after": after} if after else {})}
            page = own.get("/v1/jobs", params=query).json()
            seen += page["data"]
            assert page["first_id"] == page["data"][0]["id"]
            assert page["last_id"] == page["data"][-1]["id"]
            after = page["last_id"]
            if not page["has_more"]:
                break
            with service.database.write() as session:
                for n in range(3):
                    jobs.create(session, project, SPEC, name=f"n{n}", priority=n, retries=0, actor="user:t")
        ids = [job["id"] for job in seen]
        assert len(set(ids)) == len(ids)
        assert set(made) <= set(ids)
        values = [job[sort] if sort != "created_at" else job["id"] for job in seen]
        assert values == sorted(values, reverse=order == "desc")


def test_filters(service, mine, request):
    with service.database.write() as session:
        project = keys.project(session, request.node.name).id
        ids = [
            jobs.create(session, project, SPEC, name=name, priority=0, retries=0, actor="user:t").id
            for name in ("Alpha one", "alpha two", "beta 100%", "beta_1")
        ]
        jobs.order(session, jobs.find(session, ids[0], project), "cancel", "user:t")

    def found(**query) -> set[str]:
        return {job["name"] for job in mine.get("/v1/jobs", params=query).json()["data"]}

    assert found(name="ALPHA") == {"Alpha one", "alpha two"}
    assert found(name="100%") == {"beta 100%"}
    assert found(name="a_1") == {"beta_1"}
    assert found(status=["cancelled"]) == {"Alpha one"}
    assert found(status=["cancelled", "validating"], name="alpha") == {"Alpha one", "alpha two"}
    assert found(study="study-none") == set()
    assert found(spec_hash="0") == set()


def test_commands(service, mine):
    job = posted(mine, "/v1/jobs", SPEC)["id"]
    assert posted(mine, f"/v1/jobs/{job}/pause", None)["wanted"] == "pause"
    assert posted(mine, f"/v1/jobs/{job}/pause", None)["wanted"] == "pause"
    assert posted(mine, f"/v1/jobs/{job}/resume", None)["wanted"] == "run"
    assert posted(mine, f"/v1/jobs/{job}/cancel", None)["status"] == "cancelled"
    assert posted(mine, f"/v1/jobs/{job}/cancel", None)["status"] == "cancelled"
    answer = mine.post(f"/v1/jobs/{job}/resume")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "illegal_status"
    whole = mine.get(f"/v1/jobs/{job}").json()
    assert whole["spec"] == SPEC
    assert (whole["attempt_list"], whole["checkpoints"], whole["resolved"]) == ([], [], None)
    told = mine.get(f"/v1/jobs/{job}/events", params={"order": "asc"}).json()
    assert [e["type"] for e in told["data"]] == ["job.created", "job.pause", "job.resume", "job.cancel", "job.status"]
    assert [e["seq"] for e in told["data"]] == [1, 2, 3, 4, 5]
    newest = mine.get(f"/v1/jobs/{job}/events", params={"limit": 2}).json()
    assert [e["seq"] for e in newest["data"]] == [5, 4]
    rest = mine.get(f"/v1/jobs/{job}/events", params={"limit": 3, "after": newest["last_id"]}).json()
    assert ([e["seq"] for e in rest["data"]], rest["has_more"]) == ([3, 2, 1], False)
    for bad in ("x", f"ftevent-x-{10**30}"):
        assert mine.get(f"/v1/jobs/{job}/events", params={"after": bad}).status_code in (200, 400)


def test_artifacts_stay_in_the_jobs_own_place(service, mine):
    job = posted(mine, "/v1/jobs", SPEC)["id"]
    other = posted(mine, "/v1/jobs", SPEC)["id"]
    with service.database.read() as session:
        place = f"projects/{jobs.find(session, job).project_id}/jobs"
    service.store.put(f"{place}/{job}/attempts/1/result.json", b'{"a": 1}\n')
    service.store.put(f"{place}/{job}/plan/mixed 1.npz", b"\x93")
    service.store.put(f"{place}/{other}/secret.json", b"{}")
    listed = mine.get(f"/v1/jobs/{job}/artifacts").json()["data"]
    assert [a["id"] for a in listed] == ["attempts/1/result.json", "plan/mixed 1.npz"]
    got = mine.get(f"/v1/jobs/{job}/artifacts/attempts/1/result.json")
    assert (got.content, got.headers["content-type"]) == (b'{"a": 1}\n', "application/json")
    assert mine.get(f"/v1/jobs/{job}/artifacts/plan/mixed%201.npz").content == b"\x93"
    climbs = ["../x", f"../{other}/secret.json", f"..%2f{other}%2fsecret.json", "%2e%2e/%2e%2e/x", "/etc/passwd", "",
              "attempts/1", "attempts//1/result.json", "a%00b", "..%5c..%5cx", "x" * 300, "x/" * 3000]  # fmt: skip
    for path in climbs:
        # as it stands, which a client would tidy up
        answer = raw(service, mine.headers["Authorization"], f"/v1/jobs/{job}/artifacts/{path}")
        assert answer in (400, 404), path


def test_links_are_for_where_users_reach_s3(moto_endpoint, tmp_path, monkeypatch):
    for name, value in (("ENDPOINT_URL", moto_endpoint), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.chdir(ROOT)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="of-links")
    corpus_folder(tmp_path / "turns")
    public = moto_endpoint.replace("127.0.0.1", "localhost")
    with serving(tmp_path, roots=str(tmp_path), store="s3://of-links/store", s3_public_url=public) as service:
        job = posted(service.http, "/v1/jobs", a_job())["id"]
        service.store.put(f"projects/{service.project}/jobs/{job}/spec.json", b"{}")
        answer = service.http.get(f"/v1/jobs/{job}/artifacts/spec.json")
    assert answer.status_code == 302
    part = httpx2.get(answer.headers["location"], headers={"Range": "bytes=0-0"})
    assert (part.status_code, len(part.content)) == (206, 1)
    assert answer.headers["location"].startswith(f"{public}/of-links/store/projects/")
    assert httpx2.get(answer.headers["location"]).content == b"{}"


def raw(service: Service, key: str, target: str) -> int:
    """Status of a GET of exactly this target."""
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    connection.request("GET", target, headers={"Authorization": key})
    return connection.getresponse().status


def test_metrics_are_thinned_and_keep_their_extremes(service, mine):
    job = service.queued(SPEC)
    runner, claim = service.claimed(job)
    losses = [1.0 / n for n in range(1, 2001)]
    losses[700], losses[1500] = 9.0, -9.0
    steps = [{"kind": "step", "step": n, "loss": loss, "seconds": 0.1, "at": n * 1.0, "realised_mix": {"speech": 0.5}}
             for n, loss in enumerate(losses, 1)]  # fmt: skip
    steps[9]["loss"] = float("nan")
    begun = [{"kind": "state", "state": "training", "step": 0, "steps": 2000}]
    assert runner.tell(claim, "beat", {"first_seq": 1, "events": begun + steps}).status_code == 200
    series = service.http.get(f"/v1/jobs/{job}/metrics", params={"points": 50}).json()
    assert series["total_steps"] == {"loss": 1999, "realised_mix.speech": 2000, "seconds": 2000}
    points = series["series"]["loss"]
    assert len(points) <= 50
    assert [701, 9.0] in points
    assert [1501, -9.0] in points
    assert [p[0] for p in points] == sorted({p[0] for p in points})
    one = service.http.get(f"/v1/jobs/{job}/metrics", params={"name": "loss", "after_step": 1990}).json()["series"]
    assert one == {"loss": [[n, losses[n - 1]] for n in range(1991, 2001)]}
    assert service.http.get(f"/v1/jobs/{job}/metrics", params={"points": 1}).status_code == 400
    assert service.http.get(f"/v1/jobs/{job}/metrics", params={"after_step": 10**30}).status_code in (200, 400)
    shown = service.http.get(f"/v1/jobs/{job}").json()["progress"]
    assert (shown["state"], shown["step"], shown["steps"]) == ("training", 2000, 2000)
    posted(service.http, f"/v1/jobs/{job}/cancel", None)
    assert until(lambda: runner.tell(claim, "beat", {"first_seq": 2002, "events": []}).json()["action"] == "abort")
