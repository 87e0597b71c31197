"""Settings that are wrong: one line each with the variable, the fault and what belongs there; never a password."""

import subprocess
import sys

import pytest

from db.session import Database
from db.settings import SettingsError, from_environment

GOOD = {
    "DATABASE_URL": "postgresql+psycopg://attune:s3cr3t%40@host/attune", "BROKER_URL": "redis://:s3cr3t@host:6379/0",
    "STORE": "s3://bucket/prefix",
}  # fmt: skip
WRONG = {
    "DATABASE_URL": [
        "s3cr3t", "postgresql+psycopg://u:s3cr3t@cr3t@h:s3cr3t/x", "mysql://u:s3cr3t@h/x", "sqlite://",
        "postgresql+asyncpg://u:s3cr3t@h/x", "sqlite:///:memory:", "postgresql+psycopg://u:p@h:/s3cr3t@h/x",
    ],
    "BROKER_URL": ["s3cr3t", "amqp://u:s3cr3t@h", "redis://:p/s3cr3t@h", "redis://", "redis+socket://", "redis://h:http"],
    "STORE": ["store", "s3:///prefix", "gs://bucket", "file://folder", "s3://"],
    "S3_PUBLIC_URL": ["minio:9000", "http://"],
    "RAY_ADDRESS": ["ray://head:10001", "head:8265", "http://head:82y65"],
    "API_URL": ["api:8321", "http:/api"],
    "MAX_RUNNERS": ["-1", "many", "1.5"],
    "TRUSTED": ["perhaps"],
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in (*WRONG, "RAY_TOKEN", "DATA", "CACHE", "CODE"):
        monkeypatch.delenv(f"ATTUNE_{name}", raising=False)
    for name, value in GOOD.items():
        monkeypatch.setenv(f"ATTUNE_{name}", value)
    return lambda name, value: monkeypatch.setenv(f"ATTUNE_{name}", value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_one_is_named_with_its_fault_and_a_remedy_but_not_its_value(environment, name, value):
    environment(name, value)
    with pytest.raises(SettingsError) as told:
        from_environment()
    line = str(told.value)
    assert line.startswith(f"ATTUNE_{name}: ")
    assert ". What belongs there: " in line
    assert "\n" not in line
    assert "s3cr3t" not in line


def test_all_wrong_ones_are_told_at_once(environment):
    for name, values in WRONG.items():
        environment(name, values[0])
    with pytest.raises(SettingsError) as told:
        from_environment()
    assert {line.partition(":")[0].removeprefix("ATTUNE_") for line in str(told.value).splitlines()} == set(WRONG)


def test_an_empty_one_is_none(environment):
    """As a compose file writes what nobody has set."""
    for name in ("RAY_TOKEN", "S3_PUBLIC_URL", "MAX_RUNNERS", "CODE"):
        environment(name, "")
    told = from_environment()
    assert (told.ray_token, told.s3_public_url, told.max_runners) == (None, None, 1)
    assert told.code
    environment("STORE", "")
    with pytest.raises(SettingsError, match=r"^ATTUNE_STORE: is not set\. What belongs there: .*s3://bucket/prefix"):
        from_environment()


@pytest.mark.parametrize(("name", "value"), [
    ("DATABASE_URL", "sqlite:////var/lib/attune.sqlite"), ("DATABASE_URL", "postgresql:///attune?host=/run/postgresql"),
    ("BROKER_URL", "redis+socket:///run/valkey.sock"), ("BROKER_URL", "rediss://host/1"), ("STORE", "/srv/store"),
    ("STORE", "file:///srv/store"), ("STORE", "s3://bucket"), ("API_URL", "https://attune.example"),
])  # fmt: skip
def test_other_ways_of_writing_them(environment, name, value):
    environment(name, value)
    assert getattr(from_environment(), name.lower()) == value


def test_a_slash_at_the_end_of_an_address_changes_nothing(environment):
    environment("API_URL", "http://api:8321/")
    assert from_environment().api_url == "http://api:8321"


@pytest.mark.parametrize("command", [["db", "migrate"], ["api"], ["worker"]])
def test_each_process_says_it_in_one_line(environment, command):
    environment("DATABASE_URL", "postgresql+psycopg://u:s3cr3t@h:port/x")
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("ATTUNE_DATABASE_URL: is no address of a database")
    assert ended.stderr.count("\n") == 1
    assert "s3cr3t" not in ended.stderr


@pytest.mark.parametrize(("command", "url", "said"), [
    (["db", "migrate"], "sqlite:////no/such/folder/x", "unable to open database file); is this its address"),
    (["api"], "postgresql+psycopg://u:s3cr3t@127.0.0.1:1/x", "does it run?"),
    (["worker", "check"], "sqlite:///{folder}/empty", "no such table: lease); bring it up to date: "),
])  # fmt: skip
def test_a_database_that_cannot_be_used_is_a_line_too(environment, tmp_path, command, url, said):
    environment("STORE", str(tmp_path))
    environment("DATABASE_URL", url.format(folder=tmp_path))
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.startswith("ATTUNE_DATABASE_URL: the database cannot be used (")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "s3cr3t" not in ended.stderr


def test_a_database_is_opened_by_a_whole_address_only():
    with pytest.raises(ValueError, match=r"^ATTUNE_DATABASE_URL: is no address"):
        Database("s3cr3t")
