"""What a job answered, the recordings it was asked about, and two jobs against each other."""

import gc
import io
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from api_server import ROOT, Service, posted, until

from trainer import audio
from trainer.compare import compare, interval
from trainer.manifest import load
from trainer.predictions import limited, prediction
from trainer.resolve import read_and_resolve
from trainer.rng import philox
from trainer.spec import parse_job

pytest_plugins = ["databases", "api_service"]

SPEC = {
    "name": "a", "base": "models/tiny", "language": "ar", "steps": 3, "recipe": {"name": "sft"},
    "data": {"speech": "data/arabic_speech_commands:train", "speech_per_label": 2}, "tuning": {"encoder": "frozen"},
    "evaluate": {"on": "data/arabic_speech_commands:dev", "limit": 50},
}  # fmt: skip


def rows_of(spec: dict, share: float, stream: str, modality: str = "speech") -> list[dict]:
    """Predictions of the job's test of which about `share` are right."""
    resolved, corpus = read_and_resolve(parse_job(spec), [ROOT])
    test = limited(corpus.test.rows, spec["evaluate"]["limit"])  # type: ignore[union-attr]
    task = resolved.spec.tasks[0]  # type: ignore[index]
    right = philox(1, stream, len(test)) / 2**64 < share
    said = [u.label if ok else "nonsense" for u, ok in zip(test, right, strict=True)]
    return [prediction(u, task, modality, text) for u, text in zip(test, said, strict=True)]


@pytest.fixture(scope="module")
def done(service: Service) -> dict[str, tuple[str, list[dict]]]:
    """Finished jobs: {name: (id, speech rows)}."""
    made = {}
    for name, share, seed in (("weak", 0.3, 1), ("weak", 0.35, 2), ("strong", 0.8, 3), ("strong", 0.85, 4)):
        spec = {**SPEC, "name": name, "seed": seed}
        job, rows = service.queued(spec), rows_of(spec, share, f"{name} {seed}")
        service.finish(job, {"speech": rows, "text": rows_of(spec, 0.9, f"{seed}", "text")})
        made[f"{name}{seed}"] = (job, rows)
    return made


def test_predictions_are_paged_in_the_order_of_the_test(service, done):
    job, rows = done["weak1"]
    seen, after = [], None
    while True:
        page = service.http.get(f"/v1/jobs/{job}/predictions",
                                params={"limit": 7, **({"after": after} if after else {})}).json()  # fmt: skip
        seen += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    plain = [{k: v for k, v in row.items() if k not in ("object", "id", "right")} for row in seen]
    assert plain == json.loads(json.dumps(rows))
    assert [row["id"] for row in seen] == [row["utterance"] for row in rows]
    assert [row["right"] for row in seen] == [row["parsed"] == row["reference"] for row in rows]


def test_only_the_wrong_ones(service, done):
    job, rows = done["strong3"]
    wrong = [row["utterance"] for row in rows if row["parsed"] != row["reference"]]
    assert 2 < len(wrong) < 50
    first = service.http.get(f"/v1/jobs/{job}/predictions", params={"only": "wrong", "limit": 2}).json()
    rest = service.http.get(f"/v1/jobs/{job}/predictions",
                            params={"only": "wrong", "limit": 100, "after": first["last_id"]}).json()  # fmt: skip
    assert [row["id"] for row in first["data"] + rest["data"]] == wrong
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_modalities_and_refusals(service, done):
    job, _ = done["weak1"]
    text = service.http.get(f"/v1/jobs/{job}/predictions", params={"modality": "text"}).json()["data"]
    assert {row["modality"] for row in text} == {"text"}
    for query, status in (({"modality": "cascade"}, 404), ({"modality": "../../x"}, 404), ({"after": "nobody"}, 400),
                          ({"only": "right"}, 400), ({"limit": 101}, 400)):  # fmt: skip
        assert service.http.get(f"/v1/jobs/{job}/predictions", params=query).status_code == status, query
    waiting = posted(service.http, "/v1/jobs", SPEC)["id"]
    answer = service.http.get(f"/v1/jobs/{waiting}/predictions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "illegal_status")
    assert answer.headers["x-should-retry"] == "false"


def test_the_recording_of_a_test_utterance(service, done):
    job, rows = done["weak1"]
    utterance = next(u for u in load("data/arabic_speech_commands:dev", [ROOT]) if u.id == rows[0]["utterance"])
    answer = service.http.get(f"/v1/jobs/{job}/audio/{utterance.id}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    wave, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    assert rate == 16_000
    given = audio.read(utterance.audio, utterance.offset_s, utterance.duration_s)  # type: ignore[arg-type]
    assert np.abs(wave - given).max() < 1e-4
    trained = load("data/arabic_speech_commands:train", [ROOT])[0].id
    for other in ("nobody", trained, "../x", "..%2f..%2fx", "a/b", "%00"):
        assert service.http.get(f"/v1/jobs/{job}/audio/{other}").status_code == 404, other
    waiting = posted(service.http, "/v1/jobs", SPEC)["id"]
    assert service.http.get(f"/v1/jobs/{waiting}/audio/{utterance.id}").status_code == 409


def test_a_part_of_a_recording(service, done, tmp_path, monkeypatch):
    """What a player asks for when somebody seeks, each part of the same file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    job, rows = done["weak1"]
    place = f"/v1/jobs/{job}/audio/{rows[0]['utterance']}"
    whole = service.http.get(place)
    assert whole.headers["accept-ranges"] == "bytes"
    same, size = {"If-Range": whole.headers["etag"]}, len(whole.content)
    for asked, start, end in (("0-", 0, size), ("100-199", 100, 200), ("-50", size - 50, size), ("44-", 44, size)):
        found = service.http.get(place, headers={"Range": f"bytes={asked}", **same})
        assert (found.status_code, found.headers["content-type"]) == (206, "audio/wav"), asked
        assert found.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert found.content == whole.content[start:end]
    assert service.http.get(place, headers={"Range": f"bytes={size}-"}).status_code == 416
    other = service.http.get(place, headers={"Range": "bytes=0-9", "If-Range": '"of another file"'})
    assert (other.status_code, other.content) == (200, whole.content)
    until(lambda: gc.collect() and not list(tmp_path.iterdir()))


def test_a_test_set_that_has_changed_is_not_played(service):
    place = Path(service.settings.roots[-1]) / "moved"
    (place / "audio").mkdir(parents=True)
    soundfile.write(place / "audio" / "x.wav", np.full(16_000, 0.1, np.float32), 16_000)
    row = json.loads((ROOT / "data" / "arabic_speech_commands" / "dev.jsonl").read_text().splitlines()[0])
    row |= {"audio": "audio/x.wav", "duration_s": 0.5}
    rows = [json.dumps({**row, "id": f"u{n}", "offset_s": n * 0.25}) + "\n" for n in range(3)]
    (place / "test.jsonl").write_text("".join(rows))
    first = service.queued({**SPEC, "evaluate": {"on": "moved:test"}})
    wave = soundfile.read(io.BytesIO(service.http.get(f"/v1/jobs/{first}/audio/u1").content))[0]
    assert len(wave) == 8000
    (place / "test.jsonl").write_text("".join(rows[:2]))
    second = service.queued({**SPEC, "evaluate": {"on": "moved:test"}})
    (place / "test.jsonl").write_text("".join(rows[:1]))
    answer = service.http.get(f"/v1/jobs/{second}/audio/u1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "data_changed")
    (place / "test.jsonl").unlink()
    assert service.http.get(f"/v1/jobs/{second}/audio/u1").status_code == 410


def test_two_jobs(service, done):
    (a, weak), (b, strong) = done["weak1"], done["strong3"]
    found = service.http.get("/v1/compare", params={"a": a, "b": b}).json()
    own = json.loads(json.dumps(asdict(compare([weak], [strong], "accuracy"))))
    assert {key: found[key] for key in own} == own
    assert found["verdict"] == "better"
    for side, rows in (("a", weak), ("b", strong)):
        alone = asdict(interval([rows], "accuracy"))
        assert {key: found[side][key] for key in alone} == alone
    assert (found["a"]["jobs"], found["b"]["jobs"]) == ([a], [b])
    back = service.http.get("/v1/compare", params={"a": b, "b": a}).json()
    assert (back["verdict"], back["effect"]) == ("worse", -found["effect"])
    same = service.http.get("/v1/compare", params={"a": a, "b": a}).json()
    assert (same["effect"], same["verdict"]) == (0.0, "no evidence")


def test_two_sets_of_seeds(service, done):
    sides = {"a": ["weak1", "weak2"], "b": ["strong3", "strong4"]}
    query = {side: ",".join(done[name][0] for name in names) for side, names in sides.items()}
    found = service.http.get("/v1/compare", params={**query, "metric": "invalid_rate"}).json()
    cells = [[done[name][1] for name in names] for names in sides.values()]
    own = json.loads(json.dumps(asdict(compare(*cells, "invalid_rate"))))
    assert {key: found[key] for key in own} == own
    assert found["n_seeds"] == [2, 2]
    assert found["verdict"] == "better"  # less is better


def test_what_cannot_be_compared(service, done):
    (a, _), (b, _) = done["weak1"], done["strong3"]
    waiting = service.queued(SPEC)
    other = {**SPEC, "name": "other test", "evaluate": {**SPEC["evaluate"], "limit": 40}}
    short = service.queued(other)
    service.finish(short, {"speech": rows_of(other, 0.5, "short")})
    answers = {
        "not yet": ({"a": a, "b": waiting}, 409, "illegal_status"),
        "other test": ({"a": a, "b": short}, 400, "not_comparable"),
        "metric": ({"a": a, "b": b, "metric": "beauty"}, 400, "invalid_request"),
        "not counted": ({"a": a, "b": b, "metric": "wer"}, 400, "not_comparable"),
        "modality": ({"a": a, "b": short, "modality": "text"}, 404, "modality_not_found"),
        "twice": ({"a": f"{a},{a}", "b": b}, 400, "invalid_request"),
        "nobody": ({"a": a, "b": "ftjob-none"}, 404, "job_not_found"),
        "empty": ({"a": a, "b": ""}, 400, "invalid_request"),
    }
    for name, (query, status, code) in answers.items():
        answer = service.http.get("/v1/compare", params=query)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (name, answer.text)
    said = service.http.get("/v1/compare", params={"a": a, "b": short}).json()["error"]["message"]
    assert "10 utterances are predicted on one side only" in said
