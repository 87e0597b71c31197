"""Commands against a real API: what they print, their exit codes, and specs whose data lie here."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import specs
import yaml
from api_server import serving

from attune import completion
from attune.cli import _parser, main
from attune.places import absolute
from db import keys

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with serving(folder, trusted=True) as made:
            yield made


@pytest.fixture(autouse=True)
def home(service, tmp_path, monkeypatch):
    """Where `attune up` would have left address and key; tests work in the folder above."""
    for name in ("ATTUNE_URL", "ATTUNE_API_KEY", "ATTUNE_DATA"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "home"
    place.mkdir()
    with service.database.write() as session:
        secret = keys.issue(session, service.project, "test", "admin", "service")[1]
    (place / "client.json").write_text(json.dumps({"url": service.url, "key": secret}))
    monkeypatch.setenv("ATTUNE_HOME", str(place))
    monkeypatch.chdir(tmp_path)
    return place


@pytest.fixture
def spec(tmp_path):
    """A job over a small corpus beside it, named as seen from the spec; the base as seen from here."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    specs.corpus_folder(tmp_path / "specs" / "turns")
    path = tmp_path / "specs" / "job.yaml"
    path.write_text(yaml.safe_dump({**specs.job(Path("turns")), "tuning": {"encoder": "frozen"}}))
    return path


@pytest.fixture
def ran(capsys):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_job_from_its_submission_to_its_history(spec, ran, service, tmp_path):
    code, out, err = ran("submit", spec, "--json")
    sent = json.loads(out)
    assert code == 0
    assert sent["spec"]["data"]["corpus"] == str(tmp_path / "specs" / "turns")
    assert sent["spec"]["base"] == str(tmp_path / "models" / "tiny")
    assert f"data.corpus: sent as {tmp_path}/specs/turns" in err
    job = sent["job"]["id"]
    assert service.http.get(f"/v1/jobs/{job}").json()["spec"] == sent["spec"]
    code, out, _ = ran("jobs", "--status", "validating", "--status", "queued", "--name", "t")
    assert job in out
    assert ran("jobs", "--status", "failed")[1] == "no jobs\n"
    assert json.loads(ran("jobs", "--json")[1])["data"][0]["id"] == job
    code, out, _ = ran("job", job)
    assert "validating" in out
    assert "corpus: " in out
    assert ran("pause", job)[1] == f"{job}: validating\n"
    assert ran("resume", job)[0] == 0
    assert ran("cancel", job, "ftjob-x")[0] == 2  # the other is cancelled all the same
    code, out, _ = ran("logs", job)
    assert [line.split()[1] for line in out.splitlines()] == [
        "job.created", "job.pause", "job.resume", "job.cancel", "job.status"
    ]  # fmt: skip
    assert [json.loads(line)["seq"] for line in ran("logs", job, "--json")[1].splitlines()] == [1, 2, 3, 4, 5]


def test_a_dry_run_submits_nothing(spec, ran):
    before = json.loads(ran("jobs", "--json")[1])["data"]
    code, out, _ = ran("submit", spec, "--dry-run")
    assert code == 0
    assert "10 steps, 80 examples" in out
    assert "plan" in json.loads(ran("submit", spec, "--dry-run", "--json")[1])
    assert json.loads(ran("jobs", "--json")[1])["data"] == before


def test_what_goes_wrong_has_an_exit_code_and_one_shape(spec, ran, home):
    code, out, err = ran("job", "ftjob-x", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "job_not_found")
    assert "attune job: no job 'ftjob-x'" in err
    spec.write_text(spec.read_text().replace("language", "langauge"))
    assert ran("submit", spec)[0] == 2
    suite = {"suite": "s", "baseline": {}, "jobs": ["a.yaml"], "seeds": [1], "gate": {}}
    spec.write_text(yaml.safe_dump(suite))
    code, _, err = ran("submit", spec)
    assert (code, "suites is not built yet" in err) == (2, True)
    (home / "client.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "key": "k"}))
    code, _, err = ran("cancel", "ftjob-x")
    assert (code, "attune up" in err) == (1, True)
    (home / "client.json").unlink()
    code, _, err = ran("jobs")
    assert (code, "attune up" in err) == (2, True)
    assert ran("reingest", "--json")[0] == 2


@pytest.mark.parametrize("content", [b"", b'{"url": "http', b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_file_of_the_address_is_one_line(ran, home, spec, content):
    (home / "client.json").write_bytes(content)
    for words in (["jobs"], ["cancel", "ftjob-x"], ["submit", spec], ["study"]):
        code, out, err = ran(*words)
        assert (code, out, len(err.splitlines())) == (1, "", 1), err
        assert "client.json is damaged" in err
        assert "`attune up`" in err
    assert json.loads(ran("jobs", "--json")[1])["error"]["type"] == "local_error"
    (home / "client.json").write_text("{}")
    assert ran("jobs")[0] == 2


def test_watching_tells_how_it_ends(spec, ran, service):
    job = json.loads(ran("submit", spec, "--json")[1])["job"]["id"]
    ender = threading.Thread(target=lambda: service.http.post(f"/v1/jobs/{job}/cancel"))
    ender.start()
    code, out, _ = ran("watch", job)
    ender.join()
    assert code == 1
    assert out.startswith(f"t ({job}): cancelled")
    code, out, _ = ran("watch", job, "--json")
    assert (code, json.loads(out.splitlines()[-1])["status"]) == (1, "cancelled")


def test_ctrl_c_leaves_the_job_running(spec, ran, service):
    job = json.loads(ran("submit", spec, "--json")[1])["job"]["id"]
    command = [sys.executable, "-m", "attune.cli", "watch", job, "--json"]
    # Whoever started the tests in the background may have told all below to ignore Ctrl-C.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=heed) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["id"] == job  # it looks
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert f"{job} goes on; `attune watch {job}`" in err
    assert service.http.get(f"/v1/jobs/{job}").json()["status"] == "validating"


def test_a_study_is_submitted_shown_watched_and_cancelled(spec, ran, service):
    fields = yaml.safe_load(spec.read_text())
    del fields["name"]
    spec.write_text(yaml.safe_dump({**fields, "study": "two", "grid": {"seed": [1, 2]}, "controls": ["majority"]}))
    assert "2 run(s)" in ran("submit", spec, "--dry-run")[1]
    study = ran("submit", spec)[1].strip()
    assert study.startswith("study-")
    assert study in ran("study")[1]
    code, out, _ = ran("study", study)
    assert code == 0
    assert "3 queued" in out
    assert "0/2" in out
    assert json.loads(ran("study", study, "--json")[1])["table"]["failed"] == []
    jobs = [j["id"] for j in json.loads(ran("jobs", "--study", study, "--json")[1])["data"]]
    assert len(jobs) == 3  # two seeds and the majority
    code, out, _ = ran("compare", *jobs[:2], "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "illegal_status")
    assert ran("cancel", study)[1] == f"{study}: 3 cancelled\n"
    code, out, _ = ran("watch", study)
    assert code == 1
    assert "3 cancelled" in out


def test_data_sets_are_added_and_shown(ran, tmp_path):
    folder = specs.corpus_folder(tmp_path / "texts", recordings=0, tests=0)
    (folder / "test.jsonl").unlink()
    code, out, _ = ran("datasets", "--upload", folder)
    assert code == 0
    assert "texts" in out
    assert "ready, 40 rows, 0 errors" in out
    (folder / "train.jsonl").write_text("{}\n")
    code, out, _ = ran("datasets", "--uri", folder, "--name", "bad")
    assert code == 2
    assert "refused" in out
    assert "bad" in ran("datasets")[1]


def test_places_of_this_machine_become_absolute_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "near/speech", "far/text", "near/stage1", "encoder", "tfidf"):
        (tmp_path / name).mkdir(parents=True)
    spec = {
        "base": "base", "name": "base", "tags": {"text": "text"}, "init_from": "stage1",
        "data": {"speech": "speech:train", "text": "text", "corpus": "elsewhere:dev"},
        "evaluate": {"on": "speech:test", "metric": "text", "demos": {"retriever": "./encoder"}},
        "recipe": {"name": "label_permutation", "demonstrations": {"retriever": "tfidf"}},
        "grid": {"speech": ["speech", "else"], "data.text": ["text"], "scheme": ["text"], "base": ["base", "a/b"]},
        "also": [{"evaluate.on": "speech:dev", "scheme": "speech"}],
    }  # fmt: skip
    before = json.dumps(spec)
    made, changed = absolute(spec, [tmp_path / "near", tmp_path / "far"])
    near, far = f"{tmp_path}/near/speech", f"{tmp_path}/far/text"
    assert made == {
        "base": f"{tmp_path}/base", "name": "base", "tags": {"text": "text"}, "init_from": f"{tmp_path}/near/stage1",
        "data": {"speech": f"{near}:train", "text": far, "corpus": "elsewhere:dev"},
        "evaluate": {"on": f"{near}:test", "metric": "text", "demos": {"retriever": f"{tmp_path}/encoder"}},
        "recipe": {"name": "label_permutation", "demonstrations": {"retriever": "tfidf"}},
        "grid": {"speech": [near, "else"], "data.text": [far], "scheme": ["text"], "base": [f"{tmp_path}/base", "a/b"]},
        "also": [{"evaluate.on": f"{near}:dev", "scheme": "speech"}],
    }  # fmt: skip
    assert changed["also[0].evaluate.on"] == f"{near}:dev"
    assert len(changed) == 10
    assert json.dumps(spec) == before
    assert absolute(made, [tmp_path]) == (made, {})


def test_a_service_elsewhere_gets_the_spec_as_it_is_written(spec, ran, service, home, monkeypatch):
    monkeypatch.setenv("ATTUNE_URL", service.url)
    monkeypatch.setenv("ATTUNE_API_KEY", json.loads((home / "client.json").read_text())["key"])
    sent = json.loads(ran("submit", spec, "--json")[1])
    assert sent["spec"] == yaml.safe_load(spec.read_text())


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_is_a_script_of_the_shell(shell, ran):
    code, out, _ = ran("completion", shell)
    assert code == 0
    assert "reingest" in out
    if found := shutil.which("bash" if shell == "bash" else shell):
        subprocess.run([found, "-n"], input=out, text=True, check=True)


def test_bash_completes_commands_options_and_choices(ran):
    out = ran("completion", "bash")[1]

    def offered(*words: str) -> list[str]:
        line = " ".join(f'"{word}"' for word in ("attune", *words))
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _attune; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        command = ["bash", "-c", f"{out}\n{ask}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert offered("do") == ["down", "doctor"]
    assert "--idempotency-key" in offered("submit", "--")
    assert offered("jobs", "--status", "pau") == ["pausing", "paused"]
    assert offered("completion", "z") == ["zsh"]


def test_every_command_and_option_is_completed(ran):
    out = ran("completion", "bash")[1]
    groups = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, sub in groups[0].choices.items():
        line = next(line for line in out.splitlines() if line.strip().startswith(f"{name}) "))
        assert all(option in line for action in sub._actions for option in action.option_strings)


def test_commands_that_need_no_service_load_nothing_of_it():
    heavy = ("httpx2", "psutil", "sqlalchemy", "celery", "scipy.stats")
    code = f"import sys, attune.cli; print([m for m in {heavy} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
