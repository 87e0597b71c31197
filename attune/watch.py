"""Jobs and studies followed in a terminal: a bar, notes above it. Ctrl-C ends the looking, not the job."""

import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

from tqdm import tqdm

from attune.client import TERMINAL, Client
from attune.show_jobs import event_line, job_line

LOOK_S = 2.0
"""Between looks at a study."""

JOBS = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} jobs [{elapsed}{postfix}]"

Json = dict[str, Any]


def watch_job(client: Client, job_id: str, *, from_start: bool = False, shown: bool = True) -> Iterator[Json]:
    """Follow a job until it has ended; yields what the stream says. `from_start`: tell its history too."""
    job = client.jobs.get(job_id)
    steps, step = job["progress"]["steps"], job["progress"]["step"] or 0
    # what was done before the looking began says nothing about the speed
    with _bar(job["name"], shown, total=steps, initial=step, unit="step") as bar:
        newest = client.ask("GET", f"/v1/jobs/{job_id}/events", params={"limit": 1})["data"]
        last = None if from_start or not newest else f"{job_id}:{newest[0]['seq']}"
        for item in client.jobs.stream(job_id, last):
            if item["object"] == "job":
                _progress(bar, item)
            elif shown and item["type"] not in ("job.created", "checkpoint"):
                bar.write(event_line(item), file=sys.stderr)
            yield item


def watch_study(client: Client, study_id: str, *, shown: bool = True) -> Iterator[Json]:
    """Follow a study until all its jobs have ended; yields each job whenever its status is another."""
    known: dict[str, str] = {}
    said = ""
    study = client.studies.get(study_id)
    with _bar(study["name"], shown, total=sum(study["jobs"].values()), bar_format=JOBS) as bar:
        while True:
            jobs = {job["id"]: job for cell in study["cells"] for job in cell["jobs"]}
            ended = sum(job["status"] in TERMINAL for job in jobs.values())
            bar.n = ended
            bar.set_postfix_str("; ".join(_at(job) for job in jobs.values() if job["status"] == "running"))
            for job_id, job in jobs.items():
                if known.get(job_id) != job["status"]:
                    if shown and job["status"] in TERMINAL and job_id in known:
                        bar.write(job_line(job), file=sys.stderr)
                    known[job_id] = job["status"]
                    yield {"object": "job", **job}
            if ended == len(jobs):
                return
            if shown and (why := _waits(client, jobs.values())) not in ("", said):
                said = why
                bar.write(why, file=sys.stderr)
            time.sleep(LOOK_S)
            study = client.studies.get(study_id)


def _waits(client: Client, jobs: Collection[Json]) -> str:
    """Why nothing runs, where the service has said it; empty where something does."""
    waiting = [job["id"] for job in jobs if job["status"] == "queued"]
    if not waiting or any(job["status"] in ("running", "pausing") for job in jobs):
        return ""
    newest = client.ask("GET", f"/v1/jobs/{waiting[0]}/events", params={"limit": 1})["data"]
    return event_line(newest[0]) if newest and newest[0]["type"] in ("runner.delayed", "runner.failed") else ""


def _bar(name: str, shown: bool, **options: Any) -> tqdm:
    return tqdm(desc=name, file=sys.stderr, dynamic_ncols=True, leave=False, disable=not shown, **options)


def _progress(bar: tqdm, job: Json) -> None:
    progress = job["progress"]
    bar.total, bar.n = progress["steps"], progress["step"] or 0
    loss = "" if progress["loss"] is None else f"loss={progress['loss']:.3f}"
    where = progress["state"] if job["status"] == "running" else job["status"]
    bar.set_postfix_str(", ".join(part for part in (where, loss) if part))


def _at(job: Json) -> str:
    progress = job["progress"]
    return f"{progress['step'] or 0}/{progress['steps']}" if progress["steps"] else progress["state"] or "claimed"
