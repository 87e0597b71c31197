"""What every test run shares: an offline hub, and one line on what was at hand."""

import os

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
def s3_base(moto_endpoint, tmp_path, monkeypatch):
    """`put(folder)` uploads the files of a base and returns its s3:// address; the environment knows the service."""
    import uuid

    import boto3

    for key, value in {
        "AWS_ENDPOINT_URL": moto_endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1", "ATTUNE_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    client, bucket = boto3.client("s3"), f"models-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)

    def put(folder, *suffixes: str) -> str:
        for path in sorted(folder.iterdir()):
            if not suffixes or path.suffix in suffixes:
                client.put_object(Bucket=bucket, Key=f"bases/tiny/{path.name}", Body=path.read_bytes())
        return f"s3://{bucket}/bases/tiny"

    return put
