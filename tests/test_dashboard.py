"""The pages without a browser: what they say, who may see them, and that nothing in them comes from elsewhere."""

import contextlib
import re
from collections.abc import Iterator

import httpx2 as httpx
import pytest
from dashboard_site import HOSTILE, Site, serving

from api.dashboard import pages, words
from api.deps import COOKIE
from db import jobs, keys
from db.status import JOB

pytest_plugins = ["databases"]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def site(request, tmp_path_factory) -> Iterator[Site]:
    from databases import fresh  # a plugin by now, whose asserts pytest has rewritten

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh(request, "postgres")) if request.param == "postgres" else None
        yield stack.enter_context(serving(tmp_path_factory.mktemp("site"), url))


@pytest.fixture(scope="module")
def client(site) -> Iterator[httpx.Client]:
    """Signed in with a key that may write."""
    with httpx.Client(base_url=site.url, cookies={COOKIE: site.keys["write"]}) as found:
        yield found


@pytest.fixture
def stranger(site) -> Iterator[httpx.Client]:
    """Nobody yet."""
    with httpx.Client(base_url=site.url) as found:
        yield found


def text(client: httpx.Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


# --------------------------------------------------------------------------------------------------------- login


def test_without_a_key_every_page_leads_to_the_login_and_back(site, stranger):
    for path in ("/dashboard/jobs", "/dashboard/jobs?status=running", f"/dashboard/jobs/{site.jobs['won']}",
                 "/dashboard/studies", f"/dashboard/studies/{site.study}"):  # fmt: skip
        answer = stranger.get(path)
        assert answer.status_code == 303
        place = httpx.URL(answer.headers["location"])
        assert (place.path, place.params["next"]) == ("/dashboard/login", path)
    assert stranger.get("/").headers["location"] == "/dashboard/jobs"
    assert stranger.get("/dashboard").headers["location"] == "/dashboard/jobs"


def test_part_of_an_open_page_sends_the_whole_page_to_the_login(site, stranger):
    answer = stranger.get(f"/dashboard/jobs/{site.jobs['won']}/events", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/dashboard/login")


def test_a_key_signs_in_and_out(site, stranger):
    own = {"Origin": site.url}
    there = f"/dashboard/jobs/{site.jobs['won']}"
    assert 'type="password"' in text(stranger, f"/dashboard/login?next={there}")
    answer = stranger.post("/dashboard/login", data={"key": f" {site.keys['read']}\n", "next": there}, headers=own)
    assert (answer.status_code, answer.headers["location"]) == (303, there)
    said = answer.headers["set-cookie"]
    assert "HttpOnly" in said
    assert "samesite=strict" in said.lower()
    assert "secure" not in said.lower()  # this server speaks plain HTTP
    assert "read key" in text(stranger, there)
    answer = stranger.post("/dashboard/logout", headers=own)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/login")
    assert stranger.get(there).status_code == 303


def test_a_wrong_key_is_refused_in_words_and_sets_nothing(site, stranger):
    answer = stranger.post("/dashboard/login", data={"key": "attune-wrong"}, headers={"Origin": site.url})
    assert answer.status_code == 401
    assert "No such key" in answer.text
    assert "attune-wrong" not in answer.text
    assert "set-cookie" not in answer.headers


def test_a_revoked_key_is_signed_out(site):
    with site.database.write() as session:
        key, secret = keys.issue(session, site.project, "short", "read", "service")
    with httpx.Client(base_url=site.url, cookies={COOKIE: secret}) as holder:
        assert holder.get("/dashboard/jobs").status_code == 200
        with site.database.write() as session:
            keys.revoke(session, site.project, key.id, "service")
        assert holder.get("/dashboard/jobs").status_code == 303


@pytest.mark.parametrize("origin", [None, "http://elsewhere.example", "null"])
def test_forms_of_other_sites_sign_nobody_in_or_out(site, stranger, origin):
    headers = {} if origin is None else {"Origin": origin}
    for path in ("/dashboard/login", "/dashboard/logout"):
        answer = stranger.post(path, data={"key": site.keys["read"]}, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("place", ["//elsewhere.example", "https://elsewhere.example", "/v1/jobs", "/dashboard/\\x"])
def test_the_login_leads_to_pages_of_the_dashboard_only(site, stranger, place):
    answer = stranger.post("/dashboard/login", data={"key": site.keys["read"], "next": place},
                           headers={"Origin": site.url})  # fmt: skip
    assert answer.headers["location"] == "/dashboard/jobs"


def test_a_cookie_commands_jobs_from_this_site_only(site, client):
    path = f"/v1/jobs/{site.jobs['waiting']}/pause"
    assert client.post(path).status_code == 403
    assert client.post(path, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert client.post(path, headers={"Origin": site.url}).json()["status"] == "paused"
    assert client.post(path.replace("pause", "resume"), headers={"Origin": site.url}).json()["status"] == "queued"


# ---------------------------------------------------------------------------------------------------------- jobs


def names(page: str) -> list[str]:
    return re.findall(r'<a id="to-[^>]*>([^<]*)</a>', page)


def test_the_list_shows_every_job_with_where_it_is(site, client):
    page = text(client, "/dashboard/jobs")
    assert len(names(page)) == 9
    for said in ("coffee-it/curriculum 5 per label", ".56 (.48–.64)", "slu_f1", "training diverged", "70<span", "/120",
                 "coffee &amp; cake"):  # fmt: skip
        assert said in page, said
    for status in ("succeeded", "failed", "paused", "running", "cancelled", "queued", "validating"):
        assert f'<span class="chip {status}">{status}</span>' in page
    assert '<b id="count-queued">2</b>' in page


def test_the_filter_stands_in_the_address(site, client):
    assert names(text(client, "/dashboard/jobs?status=failed&status=paused")) == [
        "paused for the night", "diverging at a high rate",
    ]  # fmt: skip
    assert names(text(client, "/dashboard/jobs?name=QUEUE")) == ["waits in the queue"]
    page = text(client, f"/dashboard/jobs?study={site.study}&sort=name&order=asc")
    assert names(page) == ["coffee/direct 25", "coffee/direct 5"]
    assert f'<option value="{site.study}" selected>coffee &amp; cake</option>' in page
    assert 'aria-sort="ascending"' in page
    page = text(client, "/dashboard/jobs?name=nothing+like+it")
    assert "No job fits" in page
    assert client.get("/dashboard/jobs?status=lost").status_code == 400
    assert client.get("/dashboard/jobs?sort=loss").status_code == 400


def test_pages_follow_each_other_without_gap_or_repetition(site):
    with site.database.write() as session:
        other = keys.project(session, "another").id
        _, secret = keys.issue(session, other, "k", "read", "service")
        for n in range(60):
            jobs.create(session, other, {}, name=f"n{n:02}", priority=0, retries=0, actor="service")
    with httpx.Client(base_url=site.url, cookies={COOKIE: secret}) as holder:
        found, path = [], "/dashboard/jobs?sort=name&order=asc"
        while path:
            page = text(holder, path)
            found += names(page)
            following = re.search(r'rel="next" href="([^"]*)"', page)
            path = following[1].replace("&amp;", "&") if following else None
        assert found == [f"n{n:02}" for n in range(60)]
        assert holder.get(f"/dashboard/jobs/{site.jobs['won']}").status_code == 404  # another project's
        assert holder.get(f"/dashboard/studies/{site.study}").status_code == 404


def test_an_empty_list_says_how_to_begin(site):
    with site.database.write() as session:
        _, secret = keys.issue(session, keys.project(session, "empty").id, "k", "read", "service")
    with httpx.Client(base_url=site.url, cookies={COOKIE: secret}) as holder:
        page = text(holder, "/dashboard/jobs")
        assert "attune submit job.yaml" in page
        assert f"curl {site.url.removeprefix('http://')}/v1/jobs" in page
        assert "No study yet" in text(holder, "/dashboard/studies")


def test_a_job_page_tells_its_story_without_javascript(site, client):
    page = text(client, f"/dashboard/jobs/{site.jobs['won']}")
    for said in (
        "Done.", "after", ".56", ".48–.64", "120<span", "Now succeeded", "Submitted as", "key admin key", "team",
        "40 predictions on speech", "Checkpoint after step 120", "data/picovoice_barista:train", "orders",
        "attempts/1/checkpoints/120/adapter/adapter_model.safetensors",
    ):  # fmt: skip
        assert said in page, said


def test_a_failed_job_says_why(site, client):
    page = text(client, f"/dashboard/jobs/{site.jobs['broken']}")
    assert "Failed: training diverged." in page
    assert "lower optimizer.peak_lr" in page
    assert "FloatingPointError" in page


def test_a_job_in_its_second_attempt_shows_both_and_what_is_left(site, client):
    page = text(client, f"/dashboard/jobs/{site.jobs['live']}")
    assert "Training, stage mixed_last." in page
    assert "the runner went silent: no heartbeat for 75 s" in page
    assert re.search(r"about \d+ s left, then scoring", page)
    assert re.findall(r'data-no="(\d)"', page) == ["2", "1"]


def buttons(page: str) -> dict[str, bool]:
    return {n: "disabled" not in rest for n, rest in re.findall(r'data-command="(\w+)"([^>]*)>', page)}


@pytest.mark.parametrize(("job", "may"), [
    ("live", {"pause", "cancel"}), ("paused", {"resume", "cancel"}), ("waiting", {"pause", "cancel"}),
    ("checked", {"pause", "cancel"}), ("won", set()), ("broken", set()), ("gone", set()),
])  # fmt: skip
def test_buttons_are_enabled_where_the_command_makes_sense(site, client, job, may):
    page = text(client, f"/dashboard/jobs/{site.jobs[job]}")
    assert {name for name, enabled in buttons(page).items() if enabled} == may


def test_a_key_that_may_only_read_has_no_buttons(site):
    with httpx.Client(base_url=site.url, cookies={COOKIE: site.keys["read"]}) as reader:
        page = text(reader, f"/dashboard/jobs/{site.jobs['live']}")
        assert not any(buttons(page).values())
        assert "This key may only read" in page


def test_history_comes_in_parts(site, client):
    path = f"/dashboard/jobs/{site.jobs['live']}/events"
    seqs = [int(n) for n in re.findall(r'data-seq="(\d+)"', text(client, path))]
    assert seqs == sorted(seqs, reverse=True)
    assert [int(n) for n in re.findall(r'data-seq="(\d+)"', text(client, f"{path}?since={seqs[2]}"))] == seqs[:2]
    assert [int(n) for n in re.findall(r'data-seq="(\d+)"', text(client, f"{path}?before={seqs[2]}"))] == seqs[3:]


def test_files_of_a_job_are_listed_and_there(site, client):
    page = text(client, f"/dashboard/jobs/{site.jobs['won']}/files")
    links = re.findall(r'href="([^"]*)"', page)
    assert f"/v1/jobs/{site.jobs['won']}/artifacts/attempts/1/predictions/speech.jsonl" in links
    assert all(client.get(link).status_code == 200 for link in links)


def test_studies(site, client):
    assert "coffee &amp; cake" in text(client, "/dashboard/studies")
    page = text(client, f"/dashboard/studies/{site.study}")
    for said in ("direct mix 5 %", "speech_fraction 0.25", "Equal steps.", 'class="chip queued"', "study: coffee",
                 ".61 (.53–.69)"):  # fmt: skip
        assert said in page, said
    shown = text(client, f"/dashboard/studies/{site.study}/table")
    rows = httpx.get(f"{site.url}/v1/studies/{site.study}/table", headers=bearer(site)).json()["rows"]
    assert [row["runs_done"] for row in rows] == [1, 0]
    assert words.score(rows[0]) in shown
    assert "1/1" in shown
    assert "0/1" in shown


@pytest.mark.parametrize("path", ["jobs/ftjob-none", "studies/study-none", "jobs/ftjob-none/events", "jobs/x/files"])
def test_what_is_not_there_is_a_page_too(client, path):
    answer = client.get(f"/dashboard/{path}")
    assert answer.status_code == 404
    assert "no " in answer.text
    assert answer.headers["content-type"].startswith("text/html")


# ------------------------------------------------------------------------------------------------------- safety


def bearer(site: Site) -> dict[str, str]:
    return {"Authorization": f"Bearer {site.keys['read']}"}


def everything(site: Site, client: httpx.Client) -> dict[str, httpx.Response]:
    """Every page and every file."""
    paths = ["/dashboard/jobs", "/dashboard/studies", f"/dashboard/studies/{site.study}",
             f"/dashboard/studies/{site.study}/table", "/dashboard/login",
             "/dashboard/jobs/none", *(f"/dashboard/jobs/{job}" for job in site.jobs.values()),
             *(f"/dashboard/jobs/{site.jobs['live']}/{part}" for part in ("events", "files")),
             *(f"/dashboard/static/{pages.VERSION}/{name}" for name in pages.FILES)]  # fmt: skip
    return {path: client.get(path) for path in paths}


def test_nothing_that_is_served_names_an_address_elsewhere(site, client):
    for path, answer in everything(site, client).items():
        if answer.headers["content-type"].startswith(("text/", "application/json")):
            assert not re.findall(r"https?://[^\s\"'<>]*|[\"'(]//\w", answer.text), path


def test_every_answer_carries_the_content_security_policy(site, client):
    for path, answer in everything(site, client).items():
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';"), path
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_script_or_style_stands_in_a_page(site, client):
    for path, answer in everything(site, client).items():
        if answer.headers["content-type"].startswith("text/html"):
            assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", answer.text)), path
            assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", answer.text), path


def test_what_users_write_is_shown_as_they_wrote_it(site, client):
    shown = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    for path in ("/dashboard/jobs", f"/dashboard/jobs/{site.jobs['live']}"):
        page = text(client, path)
        assert HOSTILE not in page
        assert shown in page
    page = text(client, f"/dashboard/jobs/{site.jobs['live']}")
    assert "<b>team</b>" not in page
    assert "<i>x</i>" not in page
    assert "&#34;" in text(client, '/dashboard/jobs?name="><script>')


def test_files_are_kept_for_good_and_change_their_address(client):
    answer = client.get(f"/dashboard/static/{pages.VERSION}/job.js")
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")
    assert client.get("/dashboard/static/0/job.js").status_code == 404
    assert client.get(f"/dashboard/static/{pages.VERSION}/..%2Fpages.py").status_code == 404


def test_every_vendored_file_has_its_licence_beside_it():
    there = {name.removeprefix("vendor/") for name in pages.FILES if name.startswith("vendor/")}
    assert {"htmx.LICENSE", "uPlot.LICENSE"} < there
    for name in there - {"README.md"}:
        assert f"{name.split('.')[0]}.LICENSE" in there


# ------------------------------------------------------------------------------------------------------- words


def job(status: str, **more) -> dict:
    nothing = dict.fromkeys(("state", "stage", "step", "steps", "loss"))
    usual = {"wanted": "run", "reason": None, "progress": nothing, "metric": None, "scores": []}
    return {"status": status, **usual, **more}


def test_every_status_and_reason_has_words():
    for status in JOB:
        assert words.situation(job(status)).endswith(".")
    assert words.situation(job("failed", reason="out_of_memory")) == "Failed: out of memory."
    assert words.situation(job("queued", reason="lost_heartbeat")).endswith("to go on: the runner went silent.")
    assert words.situation(job("failed", reason="brand_new")) == "Failed: brand new."


@pytest.mark.parametrize(("seconds", "said"), [
    (0, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1 h 30 min"), (7200, "2 h"), (36_000, "10 h"),
    (172_800, "2 days"), (None, "–"), (-3, "0 s"),
])  # fmt: skip
def test_spans_are_said_as_people_say_them(seconds, said):
    assert words.span(seconds) == said


def test_the_main_score_is_the_metric_on_speech():
    value = {"metric": "wer", "modality": "text", "value": 1.0, "ci_low": 0.9, "ci_high": 1.14}
    spoken = {**value, "modality": "speech", "value": -0.004, "ci_low": None, "ci_high": None}
    assert words.main_score(job("succeeded", metric="wer", scores=[value, spoken])) == spoken
    assert words.main_score(job("succeeded", metric="wer", scores=[value])) == value
    assert words.main_score(job("succeeded", metric="cer", scores=[value])) is None
    assert (words.score(value), words.score(spoken), words.score(None)) == ("1.00 (.90–1.14)", ".00", "")


def test_an_event_of_an_unknown_kind_is_shown_as_it_is():
    assert words.event("brand.new", {"a": 1, "at": 5, "b": "x"}) == "a 1, b x"
    assert words.event("brand.new", {}) == "brand.new"
