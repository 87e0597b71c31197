"""The fixture `gateway`: Ceph's S3 for the whole test session: `pytest_plugins = ["gateway"]` in a test module."""

from collections.abc import Iterator

import pytest
from servers import Gateway, started_s3


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """An S3 service, with the keys of a user who may make buckets."""
    with started_s3() as started:
        yield started
