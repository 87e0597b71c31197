"""The fixture `service`: the real API on an empty database of the module's own, once on SQLite, once on Postgres.

A test module has it after `pytest_plugins = ["databases", "api_service"]`.
"""

import os
from collections.abc import Iterator

import pytest
from api_server import ROOT, Service, serving
from specs import corpus_folder


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def service(request, tmp_path_factory) -> Iterator[Service]:
    """Data references are relative to the repository, or name `turns`, the small data set of `specs`; bases are
    relative to the repository."""
    folder = tmp_path_factory.mktemp("api")
    corpus_folder(folder / "root" / "turns", texts=60, recordings=40, tests=60)
    url = None
    if request.param == "postgres":
        server, name = request.getfixturevalue("postgres"), f"api_{folder.name.replace('-', '_')}"
        server.run(f"CREATE DATABASE {name} TEMPLATE migrated")
        url = server.url(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        with serving(folder, url, f"{ROOT}{os.pathsep}{folder / 'root'}") as made:
            yield made
