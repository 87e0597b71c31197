"""The fixtures `browser`, `site` and `open_page`: a real Chromium, the pages on SQLite and on Postgres.

A test module has them after `pytest_plugins = ["databases", "dashboard_browser"]`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dashboard_site import PATIENCE_MS, Site, serving
from playwright.sync_api import Browser, Page, expect, sync_playwright

from api.deps import COOKIE

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"no {CHROMIUM}; install it: apt-get install -y --no-install-recommends chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=2 * PATIENCE_MS)
        yield found
        found.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def site(request, tmp_path_factory) -> Iterator[Site]:
    from databases import fresh  # a plugin by now, whose asserts pytest has rewritten

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh(request, "postgres")) if request.param == "postgres" else None
        yield stack.enter_context(serving(tmp_path_factory.mktemp("site"), url))


@pytest.fixture
def open_page(browser, site) -> Iterator[Callable[..., Page]]:
    """`open_page(path)`: a page of somebody who may write. What the console says beyond silence fails the test,
    unless it was expected."""
    said: list[str] = []
    contexts = []

    def opened(path: str, width: int = 1280, key: str = "write", expected: str = "$^") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, timezone_id="Asia/Tokyo", locale="en-GB"
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.add_cookies([{"name": COOKIE, "value": site.keys[key], "url": site.url}])
        page = context.new_page()

        def hear(words: str) -> None:
            if not re.search(expected, words):
                said.append(f"{path}: {words}")

        page.on("console", lambda message: hear(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: hear(str(error)))
        page.goto(site.url + path)
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    for context in contexts:
        context.close()
    assert not said
