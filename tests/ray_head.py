"""The fixture `ray_head`: one real Ray head for the whole test session.

A test module has it after `pytest_plugins = ["ray_head"]` (an import would make it a head of that module). A test that
breaks its head, or needs another kind, starts one by `ray_start.started_ray`.
"""

from collections.abc import Iterator

import pytest
from ray_start import RayHead, started_ray


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """The session's head: two CPUs, no token."""
    with started_ray() as head:
        yield head
