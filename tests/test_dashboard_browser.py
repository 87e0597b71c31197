"""The pages in a real browser, while a writer appends to the database."""

import contextlib
import re
import threading

import pytest
from dashboard_site import (
    NO_ANSWER,
    PATIENCE_MS,
    STEPS,
    Attempt,
    answering,
    chart,
    filled,
    fits,
    scores,
    step,
    wait_until,
)  # fmt: skip
from dashboard_site import predictions as leave_predictions
from playwright.sync_api import expect

from api.deps import COOKIE

pytest_plugins = ["databases", "dashboard_browser"]
pytestmark = pytest.mark.browser


def test_every_page_loads_in_silence_and_fits_a_phone(site, open_page):
    for path in ("/dashboard/jobs", f"/dashboard/jobs/{site.jobs['won']}", f"/dashboard/jobs/{site.jobs['broken']}",
                 "/dashboard/studies", f"/dashboard/studies/{site.study}", "/dashboard/login"):  # fmt: skip
        page = open_page(path, width=360)
        page.wait_for_load_state("networkidle" if "jobs/" in path else "load")
        assert fits(page), path


def test_times_are_in_the_readers_zone(site, open_page):
    time = open_page(f"/dashboard/jobs/{site.jobs['won']}").locator("#head time").first
    shown, utc = time.get_attribute("title"), time.get_attribute("datetime")
    assert shown is not None
    assert utc is not None
    assert f"{(int(utc[11:13]) + 9) % 24:02}:{utc[14:19]}" in shown  # Tokyo


def test_signing_in_and_out(browser, site):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(site.url)
    page.get_by_label("API key").fill("attune-nothing")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("No such key")
    page.get_by_label("API key").fill(site.keys["read"])
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{site.url}/dashboard/jobs")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{site.url}/dashboard/login")
    context.close()


def test_a_running_job_is_followed_to_its_end_without_a_reload(site, open_page):
    page = open_page(f"/dashboard/jobs/{site.jobs['live']}")
    page.evaluate("window.same = true")
    expect(chart(page, "loss")).to_have_attribute("aria-label", re.compile("step 70:"))
    expect(chart(page, "mix")).to_have_attribute("aria-label", re.compile("speech 84 %"))
    expect(page.locator("#live")).to_have_text("Live")
    live: Attempt = site.live

    def write() -> None:
        for first in range(71, STEPS + 1, 10):
            live.train(first, first + 9)
        live.checkpoint(STEPS)
        live.beat({"kind": "state", "state": "evaluating"})

    writer = threading.Thread(target=write)
    writer.start()
    history = page.locator("#history")
    expect(history).to_contain_text("Checkpoint after step 120")
    expect(history.locator("li").first).to_contain_text("Scoring the test set")
    expect(chart(page, "loss")).to_have_attribute("aria-label", re.compile("step 120:"))
    chart(page, "loss").hover(position={"x": chart(page, "loss").evaluate("e => e.clientWidth") - 9, "y": 60})
    expect(chart(page, "grad_norm")).to_have_attribute("aria-label", re.compile("step 120:"))  # the axis has grown
    expect(page.locator("#head")).to_contain_text("120/120")
    expect(page.locator("#head .situation")).to_have_text("Scoring the test set.")
    expect(page.locator("#checkpoints li")).to_have_count(2)
    writer.join()
    seqs = [int(li.get_attribute("data-seq")) for li in history.locator("li[data-seq]").all()]  # type: ignore[arg-type]
    assert seqs == sorted(set(seqs), reverse=True)

    live.beat({"kind": "brand_new", "said": "by a later runner"})
    expect(history.locator("li").first).to_contain_text("said by a later runner")
    leave_predictions(live, 2)
    live.done("succeeded", scores=scores(0.4))
    expect(page.locator("#head [role=status]")).to_have_text("succeeded")
    expect(page.locator("#scores")).to_contain_text(".40")
    expect(page.locator("#predictions .rows > li").first).to_be_visible()
    expect(page.locator("#live")).to_have_text("")
    assert page.evaluate("window.same")


def test_a_broken_stream_goes_on_where_it_was(site, open_page):
    job = site.queue("listened to")
    page = open_page(f"/dashboard/jobs/{job}", expected="ERR_FAILED")
    page.route("**/stream?*", lambda route: route.abort())
    page.reload()
    expect(page.locator("#live")).to_have_text("Reconnecting …")
    site.order(job, "pause")
    page.unroute("**/stream?*")
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("#history li").first).to_contain_text("Now paused")
    expect(page.locator("#history li")).to_have_count(4)
    expect(page.locator("#head [role=status]")).to_have_text("paused")
    site.order(job, "cancel")
    expect(page.locator("#live")).to_have_text("")


def test_an_api_that_restarts_costs_no_event_and_doubles_none(browser, tmp_path):
    """What happens while it is away, and what was told just before it went, is there when it is back."""
    with contextlib.ExitStack() as stack:
        site = filled(tmp_path)
        serves = stack.enter_context(contextlib.ExitStack())
        port = serves.enter_context(answering(site))
        context = stack.enter_context(contextlib.closing(browser.new_context()))
        context.set_default_timeout(PATIENCE_MS)
        url = f"http://127.0.0.1:{port}"
        context.add_cookies([{"name": COOKIE, "value": site.keys["write"], "url": url}])
        job = site.run("outlives the API")
        job.begin()
        job.train(1, 20)
        page = context.new_page()
        page.goto(f"{url}/dashboard/jobs/{job.id}")
        page.evaluate("window.same = true")
        expect(page.locator("#live")).to_have_text("Live")
        history = page.locator("#history li[data-seq]")
        before = history.count()
        page.route("**/events?since=*", lambda route: route.abort())  # told of, but it goes before it can be read
        job.checkpoint(20)
        with page.expect_request("**/events?since=*"):
            pass
        serves.close()
        expect(page.locator("#live")).to_have_text("Reconnecting …")
        page.unroute("**/events?since=*")
        serves.enter_context(answering(site, port))
        expect(history).to_have_count(before + 1)
        expect(page.locator("#live")).to_have_text("Live")
        serves.close()
        expect(page.locator("#live")).to_have_text("Reconnecting …")
        for n in range(21, 121):
            job.train(n, n)
            job.checkpoint(n)
        serves.enter_context(answering(site, port))
        expect(page.locator("#live")).to_have_text("Live")
        expect(history).to_have_count(before + 101)
        seqs = [int(li.get_attribute("data-seq")) for li in history.all()]  # type: ignore[arg-type]
        assert seqs == sorted(set(seqs), reverse=True)
        expect(chart(page, "loss")).to_have_attribute("aria-label", re.compile("step 120:"))
        job.done("failed", "diverged", "loss nan")
        expect(page.locator("#head [role=status]")).to_have_text("failed")
        assert page.evaluate("window.same")


def test_curves_after_a_retry_are_those_of_the_attempt_that_counts(site, open_page):
    job = site.run("lost and found")
    job.begin()
    job.train(1, 30)
    job.checkpoint(20)
    page = open_page(f"/dashboard/jobs/{job.id}")
    page.get_by_label("Smoothing").fill("0")
    loss = chart(page, "loss")
    expect(loss).to_have_attribute("aria-label", re.compile("step 30:"))
    job.lose()
    again = Attempt(site, site.claim("lost and found"))
    again.begin(20)
    again.beat(*({**step(n), "loss": 9.0} for n in range(21, 26)))
    expect(loss).to_have_attribute("aria-label", re.compile("step 25: 9$"))
    loss.focus()
    page.keyboard.press("Home")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(loss).to_have_attribute("aria-label", re.compile("step 21: 9$"))
    page.keyboard.press("ArrowLeft")
    expect(loss).not_to_have_attribute("aria-label", re.compile(": 9$"))
    site.order(again.id, "cancel")
    again.done("failed", "user")


def test_the_list_follows_its_jobs(site, open_page):
    page = open_page("/dashboard/jobs")
    job = site.run("comes and runs")
    row = page.locator("tr", has=page.get_by_role("link", name="comes and runs"))
    expect(row).to_contain_text("running")
    job.begin()
    job.train(1, 30)
    expect(row).to_contain_text("30/120")
    expect(row.locator("polyline")).to_have_attribute("points", re.compile(r"^0\.0,.* 100\.0,"))
    job.train(31, 60)
    expect(row).to_contain_text("60/120")
    job.done("failed", "diverged", "loss nan")
    expect(row).to_contain_text("training diverged")


def test_the_filter_is_in_the_address_and_survives_reload_and_back(site, open_page):
    page = open_page("/dashboard/jobs")
    links = page.locator("td.name a[id]")
    before = links.count()
    page.locator(".pick", has_text="paused").click()
    expect(page).to_have_url(f"{site.url}/dashboard/jobs?status=paused")
    expect(links).to_have_text(["paused for the night"])
    page.locator("#name").press_sequentially("nig")
    expect(page).to_have_url(re.compile("status=paused&name=nig$"))
    page.reload()
    expect(links).to_have_text(["paused for the night"])
    expect(page.locator("#name")).to_have_value("nig")
    page.locator("#name").fill("nothing of the kind")
    expect(page.locator("#jobs")).to_contain_text("No job fits")
    page.go_back()
    expect(links).to_have_text(["paused for the night"])
    page.get_by_role("link", name="Clear").click()
    expect(links.nth(before - 1)).to_be_visible()
    page.get_by_role("link", name="Job", exact=True).click()
    expect(page).to_have_url(re.compile(r"sort=name&order=asc"))
    expect(links.first).to_have_text("<script>alert(1)</script>")


def test_buttons_command_the_job(site, open_page):
    job = site.queue("to be commanded")
    page = open_page(f"/dashboard/jobs/{job}")
    chip = page.locator("#head [role=status]")
    page.get_by_role("button", name="Pause").click()
    expect(chip).to_have_text("paused")
    expect(page.get_by_role("button", name="Pause")).to_be_disabled()
    expect(page.locator("#history")).to_contain_text("Asked to pause")
    expect(page.locator("#history")).to_contain_text("key write key")
    page.get_by_role("button", name="Resume").click()
    expect(chip).to_have_text("queued")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert site.status(job) == "queued"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(chip).to_have_text("cancelled")
    assert site.status(job) == "cancelled"
    expect(page.locator(".commands button:enabled:visible")).to_have_count(0)


def test_a_refusal_is_said_in_the_page(site, open_page):
    job = site.run("ends meanwhile")
    page = open_page(f"/dashboard/jobs/{job.id}", expected="409|ERR_FAILED")
    page.route("**/stream?*", lambda route: route.abort())
    page.reload()
    job.begin()
    job.done("failed", "diverged", "loss nan")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#problem")).to_contain_text("Could not pause the job: the job is failed")
    expect(page.locator("#head [role=status]")).to_have_text("failed")


def test_predictions_show_what_differs_and_let_one_listen(site, open_page):
    page = open_page(f"/dashboard/jobs/{site.jobs['won']}")
    rows = page.locator("#predictions .rows > li")
    expect(rows).to_have_count(14)  # wrong ones only
    expect(rows.first.locator("ins")).to_have_count(1)
    expect(rows.nth(2)).to_contain_text(NO_ANSWER)
    expect(rows.nth(2)).to_contain_text("not a valid answer")
    player = rows.first.locator("audio")
    assert player.get_attribute("preload") == "none"
    wave = page.request.get(site.url + (player.get_attribute("src") or ""))
    assert (wave.status, wave.body()[:4]) == (200, b"RIFF")
    player.evaluate("audio => { audio.muted = true; return audio.play(); }")
    wait_until(lambda: player.evaluate("audio => audio.currentTime > 0"))
    page.get_by_label("wrong ones only").uncheck()
    expect(rows).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(40)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


def test_curves_by_mouse_and_keyboard(site, open_page):
    page = open_page(f"/dashboard/jobs/{site.jobs['won']}")
    loss, norm = chart(page, "loss"), chart(page, "grad_norm")
    expect(loss).to_have_attribute("aria-label", re.compile("step 120:"))
    loss.focus()
    page.keyboard.press("Home")
    for figure in (loss, norm):  # one crosshair
        expect(figure).to_have_attribute("aria-label", re.compile("step 1:"))
    page.keyboard.press("ArrowRight")
    expect(norm).to_have_attribute("aria-label", re.compile("step 2:"))
    page.keyboard.press("Escape")
    expect(norm).to_have_attribute("aria-label", re.compile("step 120:"))
    assert "smoothed" in (loss.get_attribute("aria-label") or "")
    page.get_by_label("Smoothing").fill("0")
    expect(loss).not_to_have_attribute("aria-label", re.compile("smoothed"))
    page.get_by_label("logarithmic").check()
    loss.hover()
    expect(loss).not_to_have_attribute("aria-label", re.compile("step 120:"))
    page.emulate_media(color_scheme="dark")
    expect(page.locator(".chart canvas")).to_have_count(5)


def test_a_study_compares_anew_when_a_job_has_succeeded(site, open_page):
    page = open_page(f"/dashboard/studies/{site.study}")
    table = page.locator("#comparison")
    expect(table).to_contain_text("direct mix 5 %")
    expect(table).to_contain_text("0/1")
    cell = Attempt(site, site.claim("study"))
    cell.begin()
    cell.train(1, 5)
    leave_predictions(cell, 5)
    cell.done("succeeded", scores=scores(0.7))
    expect(table).not_to_contain_text("0/1")
    expect(table).to_contain_text(re.compile("direct mix 25 % .*(against|better|worse)|no evidence", re.IGNORECASE))


def test_the_spec_is_copied_whole(site, open_page):
    page = open_page(f"/dashboard/jobs/{site.jobs['won']}")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("button[data-copy=spec]")
    button.click()
    expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("name: coffee-it")
