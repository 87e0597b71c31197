"""What every test run shares: an offline hub, and one line on what was at hand."""

import os
import uuid

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_report_header() -> str:
    """Whether a real S3 service is tested beside moto."""
    found = os.environ.get("ATTUNE_TEST_S3_ENDPOINT")
    return "S3 service: " + (
        found or "none given (ATTUNE_TEST_S3_ENDPOINT, _ACCESS_KEY, _SECRET_KEY): folder and moto only"
    )


@pytest.fixture(scope="session")
def moto_endpoint():
    """Address of an S3 that lives as long as the tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto_endpoint, tmp_path, monkeypatch):
    """A client of an S3 that the environment names, as it names a cache of this test's own."""
    import boto3

    for key, value in {
        "AWS_ENDPOINT_URL": moto_endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1", "ATTUNE_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    return boto3.client("s3")


@pytest.fixture
def s3_base(s3):
    """`put(folder)` uploads the files of a base and returns its s3:// address."""
    bucket = f"models-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)

    def put(folder, *suffixes: str) -> str:
        for path in sorted(folder.iterdir()):
            if not suffixes or path.suffix in suffixes:
                s3.put_object(Bucket=bucket, Key=f"bases/tiny/{path.name}", Body=path.read_bytes())
        return f"s3://{bucket}/bases/tiny"

    return put
