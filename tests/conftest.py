"""What every test run shares: an offline hub, and one line on what was at hand."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_report_header() -> str:
    """Whether a real S3 service is tested beside moto."""
    found = os.environ.get("ATTUNE_TEST_S3_ENDPOINT")
    return "S3 service: " + (
        found or "none given (ATTUNE_TEST_S3_ENDPOINT, _ACCESS_KEY, _SECRET_KEY): folder and moto only"
    )
