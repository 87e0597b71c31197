"""The pages in a real browser: much of everything, nothing of it, other scripts, other readers."""

import json
import re

import pytest
from dashboard_site import AUDIT, chart, fits, scores, step
from dashboard_site import predictions as leave_predictions
from playwright.sync_api import expect
from sqlalchemy import insert

from db import events, jobs
from db.models import Metric

pytest_plugins = ["databases", "dashboard_browser"]
pytestmark = pytest.mark.browser


def test_much_of_everything_stays_readable(site, open_page):
    """Parts of what there is are fetched, and shown whole on a phone: rows, events, points; names of any length."""
    long = site.run("no space in it " + "x" * 180 + " قهوة بالحليب من فضلك")
    long.begin()
    values = {k: v for k, v in step(1).items() if k not in ("kind", "step", "loss")}
    with site.database.write() as session:
        session.execute(insert(Metric), [
            {"job_id": long.id, "attempt_no": 1, "step": n, "kind": "step",
             "values": {**values, "loss": 7.0 if n == 4321 else 1.0}} for n in range(1, 20_001)
        ])  # fmt: skip
        notes = [events.New("note", {"level": "info", "message": f"note {n}"}) for n in range(10_000)]
        events.append(session, long.id, notes, actor="service", attempt_no=1)
        for n in range(500):
            jobs.create(session, site.project, {}, name=f"one of many {n}", priority=0, retries=0, actor=site.actor)

    fetched: list[str] = []
    page = open_page("/dashboard/jobs?name=one+of+many", width=390)
    page.on("request", lambda request: fetched.append(request.url))
    expect(page.locator("td.name")).to_have_count(25)
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("link", name="one of many 474", exact=True)).to_be_visible()
    assert not any("/metrics" in url for url in fetched)  # lists read summaries only
    assert fits(page)

    page.goto(f"{site.url}/dashboard/jobs/{long.id}")
    loss = chart(page, "loss")
    expect(loss).to_have_attribute("aria-label", re.compile("step 20000:"))
    expect(page.locator("#history li[data-seq]")).to_have_count(30)
    points = page.request.get(f"{site.url}/v1/jobs/{long.id}/metrics?name=loss").json()["series"]["loss"]
    assert len(points) <= 1000
    assert [4321, 7.0] in points  # a peak is not thinned away
    page.get_by_role("link", name="Older").click()
    expect(page.locator("#history li[data-seq]")).to_have_count(60)
    assert fits(page)
    site.order(long.id, "cancel")
    long.done("failed", "user")


def test_what_a_job_does_not_have_is_said(site, open_page):
    """A recording that is gone, predictions that nobody stored."""
    page = open_page(f"/dashboard/jobs/{site.jobs['won']}", expected="404|ERR_")
    page.route("**/audio/**", lambda route: route.fulfill(status=404, body="{}"))
    player = page.locator("#predictions audio").first
    player.evaluate("audio => { audio.play().catch(() => {}); }")
    expect(page.locator("#predictions .rows > li").first).to_contain_text("The recording is not here.")
    page.goto(f"{site.url}/dashboard/jobs/{site.jobs['broken']}")
    expect(page.locator("#predictions")).to_contain_text("There are none.")
    page.goto(f"{site.url}/dashboard/jobs/{site.jobs['waiting']}")
    expect(page.locator("#predictions")).to_contain_text("They come when the test set has been scored.")
    expect(page.locator("#curves")).to_contain_text("No step yet.")


def test_what_is_said_from_right_to_left_is_shown_so(site, open_page):
    heard = site.run("قهوة")
    heard.begin()
    leave_predictions(heard, 40)
    lines = heard.store / "attempts" / "1" / "predictions" / "speech.jsonl"
    row = json.loads(lines.read_text().splitlines()[0])
    row |= {"reference": "قهوة كبيرة بالحليب", "text": "قهوة صغيرة بالحليب", "parsed": None, "heard": "<b>قهوة</b>"}
    lines.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    heard.done("succeeded", scores=scores(0.1))
    page = open_page(f"/dashboard/jobs/{heard.id}")
    said = page.locator("#predictions dd")
    expect(said).to_have_text(["قهوة كبيرة بالحليب", "قهوة صغيرة بالحليب", "<b>قهوة</b>"])
    expect(page.locator("#predictions .rows ins")).to_have_text("كبيرة")  # it lacks this
    expect(page.locator("#predictions .rows del")).to_have_text("صغيرة")  # and this is wrong
    for line in (said.first, page.locator("h1")):
        assert line.evaluate("e => getComputedStyle(e).direction") == "rtl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_for_everybody(site, open_page, scheme):
    """Labels, names, headings, landmarks and contrast, by `audit.js`."""
    for path in ("/dashboard/jobs", f"/dashboard/jobs/{site.jobs['won']}", f"/dashboard/jobs/{site.jobs['broken']}",
                 "/dashboard/studies", f"/dashboard/studies/{site.study}", "/dashboard/jobs/none"):  # fmt: skip
        page = open_page(path, expected="404")
        page.emulate_media(color_scheme=scheme)
        if path.endswith(site.jobs["won"]):
            expect(page.locator("#predictions .rows > li")).to_have_count(14)
            expect(page.locator(".chart")).to_have_count(5)
        if "studies/" in path:
            expect(page.locator("#comparison table").first).to_be_visible()
        assert page.evaluate(AUDIT.read_text()) == [], path


def test_the_audit_sees_what_is_wrong(site, open_page):
    page = open_page("/dashboard/studies")
    page.evaluate("""document.querySelector('main').innerHTML += `<h3>x</h3><img><button></button><input>
        <p id="pale">pale</p><i id="a"></i><i id="a"></i><i tabindex="2"></i>`""")
    page.evaluate("Object.assign(document.getElementById('pale').style, { color: '#999', background: '#fff' })")
    found = page.evaluate(AUDIT.read_text())
    for said in ("heading", "image", "name", "label", "contrast", "id", "tabindex"):
        assert any(problem.startswith(said) for problem in found), (said, found)
