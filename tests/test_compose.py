"""docker-compose.yml and the Dockerfiles as far as they can be held to their word without Docker."""

import importlib.util
import re
import runpy
import shlex
import shutil
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from db import leases
from db.session import Database
from db.settings import Settings

pytest_plugins = ["databases"]
ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
FILE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ONCE = {name for name, service in SERVICES.items() if service.get("restart") == "on-failure"}
"""Services that do one thing and end."""
EXAMPLE = dict(
    line.split("=", 1) for line in (ROOT / "docker" / "example.env").read_text().splitlines() if line[:1].isalpha()
)
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::(-|\?)([^}]*))?\}")

every_service = pytest.mark.parametrize("name", SERVICES)
every_image = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def filled(value: Any) -> Any:
    """As Compose fills it in from `docker/example.env`."""
    if isinstance(value, dict):
        return {key: filled(v) for key, v in value.items()}
    if isinstance(value, list):
        return [filled(v) for v in value]
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda m: EXAMPLE.get(m[1]) or m[3] or "", value).replace("$$", "$")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def test_no_key_stands_twice():
    """Of which YAML would keep the last, without a word."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), keys
        return yaml.SafeLoader.construct_mapping(loader, node)

    Strict.add_constructor("tag:yaml.org,2002:map", lambda loader, node: mapping(loader, node))
    yaml.load(TEXT, Strict)


def test_every_variable_is_in_the_example_and_every_secret_comes_from_there():
    used = {match[1]: match[2] for match in VARIABLE.finditer(TEXT)}
    assert set(used) == set(EXAMPLE)
    assert {name for name, value in EXAMPLE.items() if "change-me" in value} == set(re.findall(r"\$\{(\w+):\?", TEXT))
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", name):
                assert VARIABLE.fullmatch(value), name
    assert "change-me" not in TEXT
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


@every_service
def test_whom_it_waits_for_can_be_waited_for(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other], other
        else:
            assert how == {"condition": "service_completed_successfully"}
            assert other in ONCE


@every_service
def test_what_stays_is_looked_after(name):
    service = SERVICES[name]
    if name in ONCE:
        assert "healthcheck" not in service
        return
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]["test"]
    assert check[0] in ("CMD", "CMD-SHELL")
    words = shlex.split(check[1]) if check[0] == "CMD-SHELL" else check[1:]
    if "build" in service and words[0] != "python":
        installed = (ROOT / service["build"]["dockerfile"]).read_text()
        assert re.search(rf"apt-get install .*\b{words[0]}\b", installed)


@every_service
def test_its_image_and_what_it_mounts(name):
    service = SERVICES[name]
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        arguments = {
            rest.partition("=")[0]
            for word, rest in instructions(ROOT / service["build"]["dockerfile"])
            if word == "ARG"
        }
        assert set(service["build"].get("args", {})) <= arguments
    else:
        assert re.search(r":v?\d+(\.\d+)*$", service["image"]), "pinned to a version"
    for volume in service.get("volumes", []):
        source = filled(volume).split(":")[0]
        assert source.startswith("./") or source in FILE["volumes"]
    assert {config["source"] for config in service.get("configs", [])} <= set(FILE["configs"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_nothing_is_declared_in_vain():
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert set(FILE["volumes"]) <= mounted
    assert set(FILE["configs"]) == {c["source"] for s in SERVICES.values() for c in s.get("configs", [])}


def test_the_service_knows_its_settings_and_ray_no_more_than_it_needs():
    known = {f"ATTUNE_{field.upper()}" for field in Settings.model_fields}
    for service in SERVICES.values():
        own = {k: v for k, v in filled(service.get("environment", {})).items() if k.startswith("ATTUNE_")}
        assert set(own) <= known
        if own:
            Settings(**{key.removeprefix("ATTUNE_").lower(): value for key, value in own.items()})
        if service.get("build", {}).get("dockerfile") == "docker/trainer.Dockerfile":
            assert not re.search("POSTGRES|REDIS", str(service["environment"]))


def test_addresses_name_services_and_their_ports():
    environment = filled(SERVICES["api"]["environment"])
    for address in (value for value in environment.values() if "://" in str(value) and not value.startswith("s3:")):
        host = re.search(r"://(?:[^@/]*@)?([^:/]+)", address)
        assert host is not None
        published = [port for service in SERVICES.values() for port in service.get("ports", [])]
        assert host[1] in SERVICES or any(port.startswith(address.partition("://")[2]) for port in published), address


def commands() -> list[list[str]]:
    """Everything that is run with Python's -m: by services, health checks and images."""
    found = [service["command"] for service in SERVICES.values() if "command" in service]
    found += [service["healthcheck"]["test"][1:] for service in SERVICES.values() if "healthcheck" in service]
    found += [yaml.safe_load(rest) for path in DOCKERFILES for word, rest in instructions(path) if word == "CMD"]
    found += [["python", *match.split()] for match in re.findall(r"run --rm api python (-m .*)", TEXT)]
    return [command[2:] for command in found if command[:2] == ["python", "-m"]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_its_command_is_one(command, monkeypatch, capsys):
    module, *arguments = command
    assert importlib.util.find_spec(f"{module}.__main__") is not None
    monkeypatch.setattr("sys.argv", [module, *arguments, "--help"])  # which comes after what is wrong
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err


def test_the_bucket_is_made_once(moto_endpoint, monkeypatch):
    """Also where the service is started again: all that has not ended well is."""
    for name, value in filled(SERVICES["bucket"]["environment"]).items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    import boto3

    for _ in range(2):
        exec(SERVICES["bucket"]["command"][2], {})
    names = [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]
    assert names.count(FILE["x-service"]["environment"]["ATTUNE_STORE"].split("/")[2]) == 1


def test_the_check_of_the_worker_sees_whether_rounds_are_made(migrated_file, tmp_path, monkeypatch):
    from worker.__main__ import main as check

    url = f"sqlite:///{shutil.copyfile(migrated_file, tmp_path / 'attune.db')}"
    told = {"DATABASE_URL": url, "BROKER_URL": "redis://127.0.0.1:1/0", "STORE": str(tmp_path)}
    for name, value in told.items():
        monkeypatch.setenv(f"ATTUNE_{name}", value)
    monkeypatch.setattr("sys.argv", SERVICES["beat"]["healthcheck"]["test"][3:])
    assert check() == 1
    with closing(Database(url)) as database, database.write() as session:
        leases.take(session, leases.WORKER_ALIVE, "worker", 60)
    assert check() == 0


# ---- images


@every_image
def test_an_image_has_all_of_the_package_and_is_no_root(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = instructions(path)
    assert all(re.search(r"(:[\d.]+(-slim)?)( AS \w+)?$", rest) for word, rest in found if word == "FROM")
    copied = [rest.split() for word, rest in found if word == "COPY" and not rest.startswith("--from")]
    sources = {source for words in copied for source in words[:-1]}
    assert all((ROOT / source).exists() for source in sources)
    assert {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]} <= sources
    assert {"pyproject.toml", "requirements.lock", project["project"]["readme"]} <= sources
    assert set(project["project"]["license-files"]) <= sources
    extras = re.search(r"'\.\[([\w,]+)\]'", path.read_text())
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])
    last = found[max(n for n, (word, _) in enumerate(found) if word == "FROM") :]
    (user,) = [rest for word, rest in last if word == "USER"]
    assert re.search(rf"useradd .*\b{user}\b", path.read_text())
    assert [word for word, _ in last].index("USER") < [word for word, _ in last].index("CMD")
    made = re.findall(r"--owner (\w+) .*?(/\S+)", " ".join(rest for word, rest in last if word == "RUN"))
    for service in SERVICES.values():  # a new volume belongs to whom the folder below it does
        if service.get("build", {}).get("dockerfile") == f"docker/{path.name}":
            named = [v.split(":") for v in service["volumes"] if v.split(":")[0] in FILE["volumes"]]
            assert all((user, target[1]) in made for target in named)


@every_image
def test_an_image_names_no_host(path):
    assert "://" not in path.read_text()
    assert all(not rest.partition("=")[2] for word, rest in instructions(path) if word == "ARG")
