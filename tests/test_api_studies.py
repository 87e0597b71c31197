"""Studies over HTTP: written in one transaction, planned as the command line plans, and a table whose numbers are the
trainer's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from api_server import Service, a_study, data_roots, posted

from attune.cli import main
from attune.client import Client
from db import jobs, studies
from trainer.corpus import Reader
from trainer.predictions import limited, prediction
from trainer.rng import philox
from trainer.study import StudySpec, expand

pytest_plugins = ["databases", "api_service"]


def test_a_dry_run_is_the_plan_of_the_command_line(service: Service, tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(a_study()))
    assert main(["plan", str(path), "--json", *data_roots(service)]) == 0
    planned = json.loads(capsys.readouterr().out)
    answered = posted(service.http, "/v1/studies?dry_run=true", a_study())
    for plan in (*planned.values(), *answered.values()):
        assert (plan["seconds"].pop("this CPU", 0) > 0) == (plan["steps"] > 0)  # a baseline trains nothing
        plan["answering_s"].pop("this CPU", 0)
    assert list(answered) == list(planned)
    assert answered == planned
    assert service.http.get("/v1/studies").json()["data"] == []


def test_a_study_is_its_jobs(service):
    made = posted(service.http, "/v1/studies", a_study(), headers={"Idempotency-Key": "one"})
    again = service.http.post("/v1/studies", json=a_study(), headers={"Idempotency-Key": "one"})
    assert again.json() == made
    assert again.headers["idempotent-replayed"] == "true"
    assert [cell["name"] for cell in made["cells"]] == [
        "text_only", "direct_mix 4 per label", "speech_only 8 per label",
        "majority", "untuned", "linear probe, 16 recordings", "linear probe, 32 recordings",
    ]  # fmt: skip
    assert [cell["kind"] for cell in made["cells"]] == ["cell"] * 3 + ["control"] * 4
    assert [[(j["seed"], j["status"]) for j in cell["jobs"]] for cell in made["cells"][:3]] == [
        [(1, "queued"), (2, "queued")], [(1, "queued"), (2, "queued")], [(1, "queued")]
    ]  # fmt: skip
    assert made["jobs"] == {"queued": 9}
    mixed = made["cells"][1]
    assert (mixed["scheme"], mixed["recordings"], mixed["speech_presentations"]) == ("direct_mix", 16, 1.0)
    whole = service.http.get(f"/v1/studies/{made['id']}").json()
    assert whole == made
    assert whole["spec"] == a_study()
    listed = service.http.get("/v1/jobs", params={"study": made["id"]}).json()["data"]
    assert {job["id"] for job in listed} == {job["id"] for cell in made["cells"] for job in cell["jobs"]}
    names = {job["name"] for job in listed}
    assert names >= {"turning/text_only seed 1", "turning/direct_mix 4 per label seed 2", "turning/untuned"}
    expanded = expand(StudySpec.model_validate(a_study()), Reader(service.settings.roots)).jobs()
    assert {job["spec_hash"] for job in listed} == set(expanded)
    one = service.http.get(f"/v1/jobs/{listed[0]['id']}").json()
    assert one["resolved"] == expanded[one["spec_hash"]].model_dump(mode="json", by_alias=True)
    shown = service.http.get("/v1/studies").json()["data"][0]
    assert (shown["id"], shown["jobs"]) == (made["id"], {"queued": 9})
    stopped = posted(service.http, f"/v1/studies/{made['id']}/cancel", None)
    assert stopped["jobs"] == {"cancelled": 9}
    assert posted(service.http, f"/v1/studies/{made['id']}/cancel", None)["jobs"] == {"cancelled": 9}


def test_all_or_nothing(service, monkeypatch):
    """Where the third job cannot be written, neither study nor jobs are there."""
    written = []

    def failing(session, *args, **more):
        written.append(args)
        if len(written) == 3:
            raise RuntimeError("the disk is full")
        return create(session, *args, **more)

    create = jobs.create
    monkeypatch.setattr(studies.jobs, "create", failing)
    before = len(service.http.get("/v1/jobs?limit=100").json()["data"])
    answer = service.http.post("/v1/studies", json=a_study(study="broken"), headers={"Idempotency-Key": "broken"})
    assert answer.status_code == 500
    monkeypatch.undo()
    assert len(service.http.get("/v1/jobs?limit=100").json()["data"]) == before
    assert "broken" not in service.http.get("/v1/studies").text
    made = posted(service.http, "/v1/studies", a_study(study="broken"), headers={"Idempotency-Key": "broken"})
    posted(service.http, f"/v1/studies/{made['id']}/cancel", None)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tuning": {}}, "tuning.encoder", "run `attune check`"),
        ({"tuning": {"encoder": "auto"}}, "tuning.encoder", "say what it says"),
        ({"grid": {"scheme": ["direct_mix"], "seed": list(range(1001))}}, "grid", "1000 at most"),
        ({"grid": {"scheme": ["text_only"], "evaluate.metric": ["accuracy", "macro_f1"]}, "also": [], "controls": []},
         "evaluate.metric", "share one"),
        ({"grid": {"scheme": ["text_only"]}, "also": []}, "controls", "no cell has any; leave it out"),
        ({"grid": {"colour": [1]}}, "grid.colour", "no such field"),
        ({"base": "/somewhere"}, "base", "outside the service's data folders"),
        ({"base": "~/somewhere"}, "base", "outside the service's data folders"),
        ({"grid": {"data.corpus": ["../up"]}, "also": []}, "data.corpus", "outside the service's data folders"),
        ({"evaluate": {"text_twin": False, "demos": {"k": 1, "from": [f"file-{'0' * 26}"]}}}, "evaluate.demos.from[0]",
         "no such data set; `GET /v1/datasets`"),
        ({"name": "x"}, "name", "named by `study`"),
        ({"controls": ["oracle"]}, "controls[0]", "majority"),
        ({"study": "untuned", "grid": {"scheme": ["direct_mix"]}, "also": []}, "study", "choose another name"),
    ],
)  # fmt: skip
def test_what_could_not_be_compared_is_refused(service, changes, param, words):
    for route in ("/v1/studies", "/v1/studies?dry_run=true"):
        answer = service.http.post(route, json=a_study(**changes))
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, "invalid_spec"), error
        assert words in error["message"]


def test_auto_is_no_question_where_no_cell_hears(service):
    quiet = a_study(study="quiet", tuning={}, grid={"seed": [1]}, also=[], controls=[], steps=2,
                    data={"text": "data/picovoice_barista:text_train"}, language="en", recipe={"name": "sft"},
                    evaluate={"on": "data/picovoice_barista:dev"})  # fmt: skip
    made = posted(service.http, "/v1/studies", quiet)
    job = service.http.get(f"/v1/jobs/{made['cells'][0]['jobs'][0]['id']}").json()
    assert job["resolved"]["spec"]["tuning"]["encoder"] == "frozen"
    posted(service.http, f"/v1/studies/{made['id']}/cancel", None)


# ---- the table


def answered(run, corpus, share: float, stream: str) -> dict[str, list[dict]]:
    """Predictions of a run of which about `share` are right."""
    test = limited(corpus.test.rows, run.spec.evaluate.limit)
    tasks = {task.name: task for task in run.spec.tasks}
    draw = philox(run.spec.seed, stream, len(test)) / 2**64
    said = np.where(draw < share, [u.label for u in test], run.spec.tasks[0].labels[0])
    return {"speech": [prediction(u, tasks[u.task], "speech", str(t)) for u, t in zip(test, said, strict=True)]}


def test_table_and_report_are_the_trainers_own(service, tmp_path):
    from trainer import learning_curve
    from trainer.report_rows import report_rows, scored_cell
    from trainer.write_report import write_report

    made = posted(service.http, "/v1/studies", a_study(study="table"))
    place = f"/v1/studies/{made['id']}/table"
    empty = service.http.get(place).json()
    probes = ["linear probe, 16 recordings", "linear probe, 32 recordings"]
    assert [(r["name"], r["kind"], r["runs_done"], r["runs"], r["value"]) for r in empty["rows"]] == [
        ("text_only", "cell", 0, 2, None), ("direct_mix 4 per label", "cell", 0, 2, None),
        ("speech_only 8 per label", "cell", 0, 1, None),
        *((name, "control", 0, 1, None) for name in ("majority", "untuned", *probes)),
    ]  # fmt: skip
    nothing = service.http.get(f"/v1/studies/{made['id']}/report")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (409, "nothing_to_report")

    read = Reader(service.settings.roots)
    expanded = expand(StudySpec.model_validate(a_study(study="table")), read)
    shares = {"text_only": 0.3, "direct_mix 4 per label": 0.8, "speech_only 8 per label": 0.6, "majority": 0.0,
              "untuned": 0.1, probes[0]: 0.5, probes[1]: 0.7}  # fmt: skip
    by_hash = {job["spec_hash"]: job["id"]
               for job in service.http.get("/v1/jobs", params={"study": made["id"]}).json()["data"]}  # fmt: skip
    cells = [*expanded.cells, *expanded.baselines]
    runs = [(cell.name, run) for cell in cells for run in cell.runs]
    rows = {run.hash: answered(run, read(run.spec), shares[name], name) for name, run in runs}
    late = expanded.cells[2].runs[0].hash
    for key in rows:
        if key != late:
            service.finish(by_hash[key], rows[key])
    half = service.http.get(place).json()
    assert [(r["runs_done"], r["runs"]) for r in half["rows"][:3]] == [(2, 2), (2, 2), (0, 1)]
    assert half["rows"][2]["value"] is None
    service.finish(by_hash[late], rows[late])
    table = service.http.get(place).json()

    wrote = write_report(tmp_path, report_rows([scored_cell(cell, rows) for cell in cells]), table["metric"],
                         study="table", base=cells[0].runs[0].spec.base, notes=expanded.notes,
                         beside=["macro_f1"])  # fmt: skip
    own = wrote.document
    assert len(table["rows"]) == len(own["pooled"]) == 7
    same = ("kind", "scheme", "recordings", "speech_fraction", "speech_presentations", "metric", "value", "ci_low",
            "ci_high", "n", "method", "metrics")  # fmt: skip
    for mine, theirs in zip(table["rows"], own["pooled"], strict=True):
        assert mine["name"] == theirs["row"]
        assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
    told = [{**c, "ci": [c["ci_low"], c["ci_high"]]} for c in table["comparisons"]]
    assert [{k: v for k, v in c.items() if k not in ("ci_low", "ci_high")} for c in told] == own["comparisons"]
    assert (table["findings"], table["notes"]) == (own["findings"], own["notes"])
    assert (table["reference"], table["confidence"]) == (own["reference"], own["confidence"])
    assert any(c["verdict"] == "better" for c in table["comparisons"])
    assert service.http.get(place).json() == table

    report = service.http.get(f"/v1/studies/{made['id']}/report").json()
    assert report["report"] == json.loads(wrote.files[0].read_text())
    assert report["text"] == wrote.text
    drawn = tmp_path / "drawn.png"
    assert learning_curve.main([str(wrote.files[0]), str(drawn)]) == 0
    assert drawn.read_bytes() == wrote.files[2].read_bytes()


def two_tasks(folder) -> list[dict]:
    """A data set `both` beside `turns`, whose rows take turns between two tasks with labels; returns the tasks."""
    tasks = [{"name": name, "instruction": {"en": f"Which {name}?"}, "answer": "label", "metrics": metrics,
              "labels": ["go", "stop", "left", "right"]}
             for name, metrics in (("way", ["accuracy"]), ("turn", ["macro_f1", "accuracy"]))]  # fmt: skip
    (folder / "both").mkdir()
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (folder / "turns" / f"{split}.jsonl").read_text().splitlines()]
        rows = [{**row, "task": tasks[n // 4 % 2]["name"]} for n, row in enumerate(rows)]
        (folder / "both" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks


def test_a_test_of_several_tasks_has_a_report_for_each_and_ranks_over_them(service, tmp_path):
    """As the trainer writes them, dev curves included."""
    from trainer.dev_curves import dev_report, sentences
    from trainer.report_rows import report_rows, scored_cell
    from trainer.result import DevScore
    from trainer.task_reports import of_task
    from trainer.write_report import write_report, write_tasks

    root = next(Path(root) for root in service.settings.roots if (Path(root) / "turns").is_dir())
    spec = a_study(study="several", tasks=two_tasks(root), data={"corpus": "both"}, also=[], controls=["untuned"])
    made = posted(service.http, "/v1/studies", spec)
    place = f"/v1/studies/{made['id']}"
    nothing = service.http.get(f"{place}/table").json()
    assert (nothing["tasks"], nothing["ranks"], nothing["task"]) == ([], [], None)
    read = Reader(service.settings.roots)
    expanded = expand(StudySpec.model_validate(spec), read)
    cells = [*expanded.cells, *expanded.baselines]
    shares = {cell.name: share for cell, share in zip(cells, (0.3, 0.8, 0.5), strict=True)}
    rows = {run.hash: answered(run, read(run.spec), shares[c.name], c.name) for c in cells for run in c.runs}
    curve = [DevScore(step=5, value=0.2, tasks={"way": 0.1, "turn": 0.3}),
             DevScore(step=10, value=0.6, tasks={"way": 0.5, "turn": 0.7})]  # fmt: skip
    listed = service.http.get("/v1/jobs", params={"study": made["id"]}).json()["data"]
    for job in listed:
        service.finish(job["id"], rows[job["spec_hash"]], dev=[at.model_dump() for at in curve])

    curves = {cell.name: {run.spec.seed: curve for run in cell.runs} for cell in expanded.cells}
    reports = {}
    for task, metric, beside in (("way", "accuracy", []), ("turn", "macro_f1", ["accuracy"])):
        dev = dev_report(curves, task, higher_is_better=True)
        assert {row["steps_to_target"] for row in dev["rows"]} == {10}
        own = report_rows(of_task([scored_cell(cell, rows) for cell in cells], task))
        reports[task] = write_report(
            tmp_path / task, own, metric, study=f"several, {task}", base="models/tiny", beside=beside, dev=dev,
            notes=[*expanded.notes, *sentences(dev)],
        )  # fmt: skip
    over = write_tasks(tmp_path, reports, "several", "models/tiny", expanded.notes)

    found = service.http.get(f"{place}/report").json()
    assert (found["report"], found["text"]) == (json.loads(over.files[0].read_text()), over.text)
    assert list(found["tasks"]) == ["way", "turn"]
    for task, report in reports.items():
        assert found["tasks"][task] == {"report": json.loads(report.files[0].read_text()), "text": report.text}
    for task in ("way", "turn"):
        table = service.http.get(f"{place}/table", params={"task": task}).json()
        told = (task, ["way", "turn"], reports[task].document["metric"])
        assert (table["task"], table["tasks"], table["metric"]) == told
        assert [r["value"] for r in table["rows"]] == [r["value"] for r in reports[task].document["pooled"]]
        assert table["ranks"] == found["report"]["rows"]
        assert len(table["ranks"]) == 2
    assert service.http.get(f"{place}/table").json()["task"] == "way"
    page = f"/dashboard/studies/{made['id']}"
    key = service.http.headers["Authorization"].split()[1]
    service.http.post("/dashboard/login", data={"key": key, "next": page}, headers={"Origin": service.url})
    assert f'hx-get="{page}/table?task=turn"' in service.http.get(page, params={"task": "turn"}).text
    shown = service.http.get(f"{page}/table", params={"task": "turn"}).text
    assert "<b>turn</b>" in shown
    assert f'<a href="{page}?task=way">way</a>' in shown
    assert f"{table['ranks'][0]['mean_rank']:.2f}" in shown
    sides = {side: made["cells"][n]["jobs"][0]["id"] for n, side in enumerate("ab")}
    for wrong, said in (({}, "give one"), ({"task": "smell"}, "'smell' is none of them")):
        refused = service.http.get("/v1/compare", params={**sides, **wrong})
        assert refused.status_code == 400
        assert f"what was tested is turn, way; {said}" in refused.text
    with Client(service.url, service.http.headers["Authorization"].split()[1]) as client:
        assert client.compare(sides["a"], sides["b"], task="turn")["metric"] == "macro_f1"
    unknown = service.http.get(f"{place}/table", params={"task": "smell"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "task_not_found")
    assert "way, turn" in unknown.json()["error"]["message"]


def test_what_failed_is_listed(service):
    made = posted(service.http, "/v1/studies", a_study(study="failing", controls=[]))
    first = made["cells"][0]["jobs"][0]["id"]
    service.finish(first, {}, "failed")
    posted(service.http, f"/v1/jobs/{made['cells'][1]['jobs'][1]['id']}/cancel", None)
    table = service.http.get(f"/v1/studies/{made['id']}/table").json()
    assert [(f["row"], f["seed"], f["status"], f["reason"]) for f in table["failed"]] == [
        ("text_only", 1, "failed", "diverged"), ("direct_mix 4 per label", 2, "cancelled", "user")
    ]  # fmt: skip
    assert (table["comparisons"], table["reference"]) == ([], None)
    posted(service.http, f"/v1/studies/{made['id']}/cancel", None)


def test_pages_of_studies(service):
    with service.client("write", "pages of studies") as own:
        small = a_study(grid={"scheme": ["text_only"], "seed": [1]}, also=[], controls=[])
        ids = [posted(own, "/v1/studies", {**small, "study": f"s{n}"})["id"] for n in range(5)]
        first = own.get("/v1/studies", params={"limit": 3}).json()
        assert ([s["id"] for s in first["data"]], first["has_more"]) == (ids[:1:-1], True)
        rest = own.get("/v1/studies", params={"limit": 3, "after": first["last_id"]}).json()
        assert ([s["id"] for s in rest["data"]], rest["has_more"]) == (ids[1::-1], False)
