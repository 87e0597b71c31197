"""What holds for every route: one shape of error, who may do what, what a body may hold, and the description."""

import http.client
import json
import re
import subprocess
import sys

import httpx2
import pytest
from api_server import ROOT, Service, a_job, a_study, posted, serving
from jsonschema import Draft202012Validator

from db import keys

pytest_plugins = ["databases", "api_service"]


def said(answer) -> dict:
    """The error of an answer, which has the one shape."""
    body = answer.json()
    assert body.keys() == {"error"}, body
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    kinds = {401: "authentication_error"}
    wanted = "server_error" if answer.status_code >= 500 else kinds.get(answer.status_code, "invalid_request_error")
    assert error["type"] == wanted
    assert "x-request-id" in answer.headers
    return error


JOB = a_job()

REFUSALS = [
    ("GET", "/v1/nothing", None, 404, "not_found"),
    ("DELETE", "/v1/jobs", None, 405, "method_not_allowed"),
    ("GET", "/v1/jobs/ftjob-none", None, 404, "job_not_found"),
    ("GET", "/v1/studies/study-none", None, 404, "study_not_found"),
    ("GET", "/v1/jobs?limit=1000", None, 400, "invalid_request"),
    ("GET", "/v1/jobs?limit=x", None, 400, "invalid_request"),
    ("GET", "/v1/jobs?status=lost", None, 400, "invalid_request"),
    ("GET", "/v1/jobs?after=ftjob-none", None, 400, "invalid_request"),
    ("GET", "/v1/studies?after=study-none", None, 400, "invalid_request"),
    ("GET", "/v1/jobs?sort=colour", None, 400, "invalid_request"),
    ("POST", "/v1/jobs", b"{", 400, "invalid_request"),
    ("POST", "/v1/jobs", b"[1]", 400, "invalid_request"),
    ("POST", "/v1/jobs", b'{"name": NaN}', 400, "invalid_request"),
    ("POST", "/v1/jobs", b'{"seed": 123456789012345678901234567890}', 400, "invalid_request"),
    ("POST", "/v1/jobs", b'{"name": "a\\u0000b"}', 400, "invalid_request"),
    ("POST", "/v1/jobs", b'{"name": "\\ud800"}', 400, "invalid_request"),
    ("POST", "/v1/jobs", b"[" * 100_000, 400, "invalid_request"),
    ("POST", "/v1/jobs", {"nme": "x"}, 400, "invalid_spec"),
    ("POST", "/v1/jobs", {**JOB, "base": "/etc"}, 400, "invalid_spec"),
    ("POST", "/v1/jobs?dry_run=true", {**JOB, "data": {"speech": "nowhere:train"}}, 400, "invalid_spec"),
    ("POST", "/v1/jobs?dry_run=true", {**JOB, "data": {"speech": "../x"}}, 400, "invalid_spec"),
    ("POST", "/v1/jobs?dry_run=true", {**JOB, "base": "x" * 5000}, 400, "invalid_request"),
    ("POST", "/v1/jobs?dry_run=true", {**JOB, "steps": 10**9}, 400, "invalid_spec"),
    ("POST", "/v1/jobs?dry_run=true", {**JOB, "global_batch": 10**12}, 400, "invalid_spec"),
    ("POST", "/v1/datasets", {"name": "x", "uri": "x" * 5000}, 400, "invalid_request"),
    ("POST", "/v1/studies", {"study": "s"}, 400, "invalid_spec"),
    ("POST", "/v1/keys", {"name": "k", "scope": "all"}, 400, "invalid_request"),
    ("POST", "/v1/keys", {"name": "k", "more": 1}, 400, "invalid_request"),
    ("DELETE", "/v1/keys/key-none", None, 404, "key_not_found"),
    ("DELETE", "/v1/bases/no/base", None, 404, "base_not_found"),
    ("GET", "/v1/compare?a=ftjob-none&b=ftjob-none", None, 404, "job_not_found"),
    ("GET", "/v1/compare?a=ftjob-none", None, 400, "invalid_request"),
    ("GET", "/v1/jobs/%00", None, None, None),
    ("GET", "/v1/jobs?name=%00", None, None, None),
    ("GET", "/v1/jobs?after=%ff%fe", None, 400, "invalid_request"),
    ("POST", "/internal/v1/runners/run-none/register", {"code": "x"}, 401, "bad_code"),
    ("POST", "/internal/v1/runners/run-none/register", b'{"code": "\\ud800"}', 400, "invalid_request"),
    ("POST", "/internal/v1/attempts/ftjob-none/1/beat", {"first_seq": 1, "events": []}, 410, "fenced"),
    ("POST", f"/internal/v1/attempts/ftjob-none/{10**30}/beat", {"first_seq": 1, "events": []}, None, None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), REFUSALS, ids=lambda v: str(v)[:40])
def test_every_refusal_has_the_one_shape(service: Service, method, path, body, status, code):
    content = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
    answer = service.http.request(method, path, headers={"Content-Type": "application/json"}, **content)
    assert answer.status_code == status if status else answer.status_code in (200, 400, 404, 410), answer.text
    if answer.status_code != 200:
        assert said(answer)["code"] == code or status is None


def test_every_list_is_of_one_shape(service):
    job = posted(service.http, "/v1/jobs", JOB)["id"]
    for path in ("jobs", "studies", "datasets", "keys", "bases", f"jobs/{job}/events", f"jobs/{job}/artifacts"):
        found = service.http.get(f"/v1/{path}").json()
        ids = [row["id"] for row in found["data"]] or [None]
        assert found.keys() == {"object", "data", "has_more", "first_id", "last_id"}, path
        assert (found["object"], found["first_id"], found["last_id"]) == ("list", ids[0], ids[-1]), path


def test_a_bad_spec_says_field_value_and_remedy(service):
    error = said(service.http.post("/v1/jobs", json={**JOB, "langauge": "en"}))
    assert (error["param"], error["code"]) == ("langauge", "invalid_spec")
    assert "did you mean 'language'?" in error["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(service, chunked):
    """Nothing is sent beyond what the server must read to know: it closes the connection, and a client that goes on
    sending may see that before the answer."""
    address = httpx2.URL(str(service.http.base_url))
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    connection.putrequest("POST", "/v1/jobs")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Authorization", service.http.headers["authorization"])
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(17 << 20))))
    connection.endheaders()
    if chunked:
        for _ in range((16 << 4) + 1):
            connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    answer = connection.getresponse()
    assert answer.status == 413
    assert "16 MiB" in json.loads(answer.read())["error"]["message"]
    connection.close()


def test_what_goes_wrong_on_our_side_is_a_500_that_tells_nothing(tmp_path):
    with serving(tmp_path) as service:
        job = posted(service.http, "/v1/jobs", JOB)["id"]
        with service.database.write() as session:
            session.connection().exec_driver_sql("ALTER TABLE metric RENAME TO elsewhere")
        answer = service.http.get(f"/v1/jobs/{job}/metrics")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "elsewhere" not in answer.text
        assert "metric" not in answer.text


# ---- who may do what


def test_scopes(service):
    routes = {
        "read": [("GET", "/v1/jobs"), ("GET", "/v1/studies"), ("GET", "/v1/bases")],
        "write": [("POST", "/v1/jobs"), ("POST", "/v1/studies"), ("POST", "/v1/studies/study-none/cancel"),
                  ("POST", "/v1/jobs/ftjob-none/cancel")],
        "admin": [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("POST", "/v1/bases"), ("DELETE", "/v1/keys/key-none"),
                  ("DELETE", "/v1/bases/none")],
    }  # fmt: skip
    order = list(routes)
    for scope in (None, *order):
        with service.client(scope) as http:
            for needed, calls in routes.items():
                for method, path in calls:
                    answer = http.request(method, path, json={} if method == "POST" else None)
                    if scope is None:
                        assert answer.status_code == 401, path
                        assert said(answer)["code"] == "invalid_api_key"
                    elif order.index(scope) < order.index(needed):
                        assert answer.status_code == 403, path
                        assert said(answer)["code"] == "insufficient_scope"
                    else:
                        assert answer.status_code not in (401, 403), path


@pytest.mark.parametrize("header", ["attune-wrong", "Basic eA==", "Bearer", "Bearer attune-wrong"])
def test_a_wrong_key_is_refused(service, header):
    with service.client(None, headers={"Authorization": header}) as http:
        assert said(http.get("/v1/jobs"))["code"] == "invalid_api_key"


def test_a_key_is_shown_once_and_ends_at_once(service):
    made = posted(service.http, "/v1/keys", {"name": "ci", "scope": "read"})
    assert made["scopes"] == ["read"]
    listed = next(k for k in service.http.get("/v1/keys").json()["data"] if k["id"] == made["id"])
    assert "secret" not in listed
    with service.client(None, headers={"Authorization": f"Bearer {made['secret']}"}) as http:
        assert http.get("/v1/jobs").status_code == 200
        assert service.http.delete(f"/v1/keys/{made['id']}").json()["deleted"]
        assert http.get("/v1/jobs").status_code == 401
    assert service.http.delete(f"/v1/keys/{made['id']}").status_code == 404
    with service.database.read() as session:
        assert keys.holder(session, made["secret"]) is None


def test_the_ids_of_another_project_do_not_exist(service):
    job = service.queued(JOB)
    study = posted(service.http, "/v1/studies", a_study())["id"]
    key = posted(service.http, "/v1/keys", {"name": "mine"})["id"]
    calls = [
        ("GET", f"/v1/jobs/{job}{rest}")
        for rest in ("", "/events", "/metrics", "/stream", "/artifacts", "/artifacts/spec.json", "/predictions",
                     "/audio/x")
    ]  # fmt: skip
    calls += [("POST", f"/v1/jobs/{job}/{command}") for command in ("cancel", "pause", "resume")]
    calls += [("GET", f"/v1/studies/{study}"), ("GET", f"/v1/studies/{study}/table")]
    calls += [("POST", f"/v1/studies/{study}/cancel"), ("DELETE", f"/v1/keys/{key}")]
    calls += [("GET", f"/v1/compare?a={job}&b={job}")]
    with service.client("admin", "another") as http:
        for method, path in calls:
            answer = http.request(method, path)
            assert answer.status_code == 404, path
            there = {"ftjob": "job", "study": "study", "key-0": "key"}
            assert said(answer)["code"] in {f"{what}_not_found" for what in there.values()}
        assert http.get("/v1/jobs").json()["data"] == []
        assert http.get("/v1/studies").json()["data"] == []
        assert http.get(f"/v1/jobs?study={study}").json()["data"] == []
    assert service.http.get(f"/v1/jobs/{job}").json()["status"] == "queued"
    posted(service.http, f"/v1/studies/{study}/cancel", None)


def test_a_cookie_works_from_our_own_page_only(service):
    secret = posted(service.http, "/v1/keys", {"name": "browser", "scope": "write"})["secret"]
    job = service.queued(JOB)
    with service.client(None, cookies={"attune_key": secret}) as http:
        assert http.get("/v1/jobs").status_code == 200
        for origin in (None, "null", "https://elsewhere.example", f"{service.url}.elsewhere.example", "http://"):
            headers = {} if origin is None else {"Origin": origin}
            answer = http.post(f"/v1/jobs/{job}/pause", headers=headers)
            assert answer.status_code == 403
            assert said(answer)["code"] == "cross_origin"
        assert http.post(f"/v1/jobs/{job}/pause", headers={"Origin": service.url}).status_code == 200
        # a key in the header needs no page
        http.headers["Authorization"] = f"Bearer {secret}"
        assert http.post(f"/v1/jobs/{job}/cancel").status_code == 200


def test_bases(service):
    http = service.http
    assert http.get("/v1/bases").json()["data"] == []
    try:
        posted(http, "/v1/bases", {"id": "models/other", "licence": "Apache-2.0"})
        error = said(http.post("/v1/studies", json=a_study()))
        assert (error["param"], error["code"]) == ("base", "invalid_spec")
        assert "not among the allowed bases (models/other)" in error["message"]
        posted(http, "/v1/bases", {"id": "models/tiny", "licence": "Apache-2.0", "revision": "files:other"})
        assert "revision files:other only" in said(http.post("/v1/studies", json=a_study()))["message"]
        with service.client("admin", "elsewhere") as others:  # another project's list is another
            assert others.get("/v1/bases").json()["data"] == []
            assert others.delete("/v1/bases/models/other").status_code == 404
            posted(others, "/v1/studies?dry_run=true", a_study())
            posted(others, "/v1/bases", {"id": "models/tiny", "licence": "MIT"})
            assert [b["licence"] for b in others.get("/v1/bases").json()["data"]] == ["MIT"]
        assert [b["id"] for b in http.get("/v1/bases").json()["data"]] == ["models/other", "models/tiny"]
    finally:
        for base in ("models/other", "models/tiny"):
            assert http.delete(f"/v1/bases/{base}").status_code == 200


# ---- the process


def test_health(service):
    with service.client(None) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        ready = http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["checks"]["database"] == "ok"
        assert ready.json()["checks"]["broker"] != "ok"  # jobs are taken all the same
        figures = http.get("/metrics").text
    assert 'attune_jobs{status="queued"}' in figures


FREE = ("/v1/compare", "/v1/studies/{study_id}/table")
"""What the trainer's own report says, as it says it."""


def test_the_description_is_whole(service):
    document = service.http.get("/openapi.json").json()
    assert re.match(r"3\.1\.\d", document["openapi"])
    assert {"title", "version"} <= document["info"].keys()
    names = []
    for path, calls in document["paths"].items():
        in_path = set(re.findall(r"{([^}]+)}", path))
        for method, call in calls.items():
            assert method in ("get", "post", "put", "delete")
            names.append(call["operationId"])
            declared = {p["name"] for p in call.get("parameters", []) if p["in"] == "path"}
            assert declared == in_path, path
            assert call["responses"]
            assert call.get("description") or call.get("summary")
            for code, said in call["responses"].items():
                shapes = [content.get("schema") for content in said.get("content", {}).values()]
                if code == "default":
                    assert shapes == [{"$ref": "#/components/schemas/ErrorBody"}]
                elif path.startswith("/v1") and "application/json" in said.get("content", {}) and path not in FREE:
                    assert "#/components/schemas/" in json.dumps(shapes), path
            assert call["responses"].keys() <= {"200", "206", "302", "default"}
            assert bool(call.get("security")) == path.startswith("/v1")
    assert len(set(names)) == len(names)
    assert not any(path.startswith("/internal") for path in document["paths"])
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert name
    refs = re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', service.http.get("/openapi.json").text)
    assert set(refs) <= document["components"]["schemas"].keys()


def test_what_no_route_knows_is_refused_by_name(service):
    def refused(method: str, path: str, **body) -> tuple[int, str, str | None]:
        answer = service.http.request(method, path, **body)
        error = answer.json()["error"]
        return answer.status_code, error["message"], error["param"]

    status, message, param = refused("GET", "/v1/jobs?statuss=failed")
    assert (status, param) == (400, "statuss")
    assert "known: status, study" in message
    assert refused("GET", "/v1/jobs/x?b=1&a=1") == (400, "a: no such parameter here; known: none", "a")
    status, message, _ = refused("GET", "/nowhere")
    assert (status, message) == (404, "GET /nowhere: not found; /openapi.json has every route")
    status, message, _ = refused("PATCH", "/v1/jobs")
    assert (status, message) == (405, "PATCH /v1/jobs: method not allowed; /openapi.json has every route")
    status, message, param = refused("POST", "/v1/jobs", content='{"name": }',
                                     headers={"content-type": "application/json"})  # fmt: skip
    assert (status, param) == (400, "body")
    assert message.startswith("body: no JSON at character 9: ")


def test_a_second_replica_on_sqlite_is_refused(tmp_path):
    """By a real process: it waits for as long as a dead one's lease would last, then says what to do."""
    with serving(tmp_path) as service:
        environment = {
            "ATTUNE_DATABASE_URL": service.settings.database_url, "ATTUNE_BROKER_URL": service.settings.broker_url,
            "ATTUNE_STORE": service.settings.store, "PATH": "",
        }  # fmt: skip
        code = "import api.app as a, api.__main__ as m, sys; a.ALIVE_S = 0.5; sys.exit(m.main())"
        second = subprocess.run([sys.executable, "-c", code, "--port", "0"], cwd=ROOT, env=environment,
                                capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert second.returncode == 2, second.stderr
        assert "SQLite serves one. Stop it, or use Postgres" in second.stderr
        assert service.http.get("/v1/jobs").status_code == 200
    with serving(tmp_path) as next_one:  # the first gave its place back
        assert next_one.http.get("/healthz").status_code == 200


def test_the_api_never_loads_what_trains():
    heavy = ("torch", "transformers", "peft", "ray", "sklearn", "matplotlib")
    code = f"import sys, api.app; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
