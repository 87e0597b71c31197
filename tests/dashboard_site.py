"""A real API server whose database holds jobs in every kind of place, for the tests of the pages."""

import hashlib
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from api.app import be_the_one, create_app
from db import attempts, jobs, keys, runners, studies
from db.attempts import Claim
from db.migrations import migrate
from db.session import Database
from db.settings import Settings
from trainer import answers
from trainer.corpus import tasks_of
from trainer.manifest import load, locate
from trainer.predictions import prediction, to_lines
from trainer.source_rows import SourceRows

ROOT = Path(__file__).parent.parent
AUDIT = Path(__file__).parent / "audit.js"
PATIENCE_MS = 60_000
TEST = "data/picovoice_barista:test"
HOSTILE = "<script>alert(1)</script>"
NO_ANSWER = "<img src=x onerror=alert(1)>"
POOL, CODE = "pool", "test"
STEPS = 120


class Site:
    """The server's address, its database, a key for each scope, and the ids of its jobs by short names."""

    def __init__(self, folder: Path, database_url: str | None = None):
        self.folder = folder
        self.database_url = database_url or f"sqlite:///{folder / 'db.sqlite'}"
        self.database = Database(self.database_url)
        self.url, self.jobs, self.study = "", {}, ""
        self.project, self.keys, self.key_id = "", {}, ""
        self.live: Any = None

    def settings(self) -> Settings:
        return Settings(
            database_url=self.database_url, broker_url="redis://127.0.0.1:1/0",
            store=str(self.folder / "store"), code=CODE, data=str(ROOT),
        )  # fmt: skip

    # ---- jobs in places

    def queue(self, name: str, tags: dict[str, str] | None = None, pool: str = POOL) -> str:
        """A queued job."""
        with self.database.write() as session:
            job = jobs.create(session, self.project, spec(name), name=name, priority=0, retries=3, actor=self.actor,
                              tags=tags)  # fmt: skip
            jobs.validated(session, job.id, resolved(name), hashlib.sha256(name.encode()).hexdigest(), pool)
        return job.id

    def claim(self, pool: str) -> Claim:
        """The next queued job of a pool, claimed by a fresh runner."""
        with self.database.write() as session:
            started = runners.start(session, pool, CODE, 1, 0)
            token = runners.register(session, started.id, started.bootstrap) or ""
            runner = runners.seen(session, started.id, token)
            assert runner is not None
            found = attempts.claim(session, runner, token)
        assert found is not None
        return found

    def run(self, name: str, tags: dict[str, str] | None = None) -> "Attempt":
        """A new job that has just been claimed; its pool is its own, so that it is the next."""
        pool = name[:64]
        self.queue(name, tags, pool)
        return Attempt(self, self.claim(pool))

    @property
    def actor(self) -> str:
        return f"user:{self.key_id}"

    def order(self, job_id: str, asked: Any) -> None:
        """A user's command."""
        with self.database.write() as session:
            job = jobs.find(session, job_id)
            assert job is not None
            jobs.order(session, job, asked, self.actor)

    def status(self, job_id: str) -> str:
        with self.database.read() as session:
            job = jobs.find(session, job_id)
            assert job is not None
            return job.status


class Attempt:
    """What a runner does with a claim: events in heartbeats."""

    def __init__(self, site: Site, claim: Claim):
        self.site, self.claim, self.id, self.seq = site, claim, claim.job.id, 1

    def beat(self, *events: dict[str, Any]) -> None:
        with self.site.database.write() as session:
            attempts.beat(session, self.id, self.claim.no, self.claim.token, self.seq, events)
        self.seq += len(events)

    def train(self, first: int, last: int) -> None:
        """Steps first … last."""
        self.beat(*(step(n) for n in range(first, last + 1)))

    def begin(self, at: int = 0) -> None:
        self.beat({"kind": "state", "state": "loading", "attempt": self.claim.no},
                  {"kind": "note", "level": "info", "message": "encoder: frozen. it hears"},
                  {"kind": "state", "state": "training", "step": at, "steps": STEPS})  # fmt: skip

    def checkpoint(self, at: int) -> None:
        prefix = f"attempts/{self.claim.no}/checkpoints/{at}"
        self.beat({"kind": "checkpoint", "step": at, "prefix": prefix})
        put(self.store / prefix / "adapter" / "adapter_config.json", b"{}")
        put(self.store / prefix / "adapter" / "adapter_model.safetensors", b"weights")

    @property
    def store(self) -> Path:
        return self.site.folder / "store" / "projects" / self.site.project / "jobs" / self.id

    def lose(self) -> None:
        """The service gives the attempt up."""
        with self.site.database.write() as session:
            attempts.end(session, self.id, self.claim.no, "lost", "lost_heartbeat", "no heartbeat for 75 s")

    def done(self, outcome: Any, reason: str | None = None, message: str = "", scores: Any = None) -> None:
        with self.site.database.write() as session:
            attempts.done(session, self.id, self.claim.no, self.claim.token, self.seq, [], outcome, reason, message)
        with self.site.database.write() as session:
            jobs.finish(session, self.id, scores)


def step(n: int) -> dict[str, Any]:
    """A step event of a two-stage job whose loss falls, with noise that is the same every time."""
    noise = random.Random(n)
    second = n > 60
    wanted = {"synthetic": 1 / 6, "speech": 5 / 6} if second else {"synthetic": 1.0}
    shown = {"synthetic": 5 + n % 2, "speech": 27 - n % 2} if second else {"synthetic": 32}
    return {
        "kind": "step", "stage": "mixed_last" if second else "synthetic_first", "step": n,
        "loss": 4.5 * math.exp(-n / 35) + 0.3 + 0.25 * noise.random() + (0.8 * math.exp((60 - n) / 9) if second else 0),
        "lr": 2e-3 * min(n / 10, (STEPS - n) / (STEPS - 10)), "grad_norm": 1.2 + 3 * math.exp(-n / 20) + noise.random(),
        "tokens": 100 + n % 7, "examples": shown, "requested_mix": wanted,
        "realised_mix": {k: v / 32 for k, v in shown.items()}, "seconds": 0.2 + 0.05 * noise.random(),
        "data_wait": 0.01, "at": 1.0,
    }  # fmt: skip


def spec(name: str) -> dict[str, Any]:
    return {
        "name": name, "base": "models/tiny", "language": "en", "data": {"speech": "data/picovoice_barista:train"},
        "recipe": {"name": "limited_speech", "scheme": "curriculum"}, "steps": STEPS,
        "evaluate": {"on": TEST, "metric": "slu_f1"},
    }  # fmt: skip


def scores(value: float) -> dict[str, Any]:
    """What lists show of a result."""
    made = [
        {"task": "intent_slots", "modality": "speech", "metric": metric, "value": v, "ci_low": v - d, "ci_high": v + d,
         "n": 40}
        for metric, v, d in (("slu_f1", value, 0.08), ("exact_match", value - 0.1, 0.07), ("invalid_rate", 0.03, 0.02))
    ]  # fmt: skip
    return {"metric": "slu_f1", "scores": made}


def put(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def predictions(attempt: Attempt, every: int) -> None:
    """Answers to the first forty test utterances, each `every`-th wrong, one of those no valid answer."""
    task, rows = tasks_of(TEST, [ROOT])["intent_slots"], []
    for n, utterance in enumerate(load(TEST, [ROOT])[:40]):
        label = utterance.label
        assert isinstance(label, dict)
        if n % every == 0:
            label = {**label, "slots": label["slots"][1:]}
        text = NO_ANSWER if n == 2 * every else answers.render(label, task)
        rows.append(prediction(utterance, task, "speech", text))
    put(attempt.store / "attempts" / str(attempt.claim.no) / "predictions" / "speech.jsonl", to_lines(rows))
    put(attempt.store / "final.json", json.dumps({"attempt": attempt.claim.no}).encode())


def resolved(name: str) -> dict[str, Any]:
    """As much of a resolved job as the pages and the routes behind them read."""
    place = locate(TEST, [ROOT])
    rows = load(TEST, [ROOT])
    task = tasks_of(TEST, [ROOT])["intent_slots"].model_dump(mode="json")
    pin = {"ref": TEST, "sha256": SourceRows(TEST, rows, len(rows), place.folder).sha256}
    return {"spec": {**spec(name), "tasks": [task]}, "test": pin}


def fill(site: Site) -> None:
    """Jobs in many places; the one called 'live' is in its second attempt."""
    with site.database.write() as session:
        site.project = keys.project(session, "default").id
        for scope in ("read", "write", "admin"):
            key, site.keys[scope] = keys.issue(session, site.project, f"{scope} key", scope, "service")
            site.key_id = key.id

    won = site.run("coffee-it/curriculum 5 per label", tags={"team": "orders"})
    won.begin()
    won.train(1, STEPS)
    won.checkpoint(STEPS)
    won.beat({"kind": "state", "state": "evaluating"}, {"kind": "predicted", "modality": "speech", "utterances": 40})
    predictions(won, 3)
    won.done("succeeded", scores=scores(0.56))

    broken = site.run("diverging at a high rate")
    broken.begin()
    broken.train(1, 30)
    trace = 'Traceback (most recent call last):\n  File "loop.py", line 1\nFloatingPointError'
    broken.beat({"kind": "error", "reason": "diverged", "message": "step 31: loss nan", "traceback": trace})
    broken.done("failed", "diverged", "step 31: loss nan, gradient norm inf; lower optimizer.peak_lr")

    paused = site.run("paused for the night")
    paused.begin()
    paused.train(1, 50)
    site.order(paused.id, "pause")
    paused.checkpoint(50)
    paused.done("yielded", "yielded")

    first = site.run(HOSTILE, tags={"<b>team</b>": "<i>x</i>"})
    first.begin()
    first.train(1, 40)
    first.checkpoint(40)
    first.train(41, 55)
    first.lose()
    live = Attempt(site, site.claim(HOSTILE))
    live.begin(40)
    live.train(41, 70)

    waiting = site.queue("waits in the queue")
    gone = site.queue("was not needed after all")
    site.order(gone, "cancel")
    with site.database.write() as session:
        checked = jobs.create(session, site.project, spec("just sent"), name="just sent", priority=5, retries=3,
                              actor=site.actor).id  # fmt: skip
        cells = [{"name": f"direct mix {n} %", "kind": "cell", "scheme": "direct_mix",
                  "settings": {"speech_fraction": n / 100},
                  "recordings": 4 * n, "speech_fraction": n / 100, "speech_presentations": 8, "seeds": [[1, 1]],
                  "jobs": [f"key{n}"]} for n in (5, 25)]  # fmt: skip
        new = {
            f"key{n}": studies.NewJob(resolved(name), f"{n:064x}", "study", name, 0, 3)
            for n in (5, 25)
            for name in [f"coffee/direct {n}"]
        }
        site.study = studies.create(session, site.project, name="coffee & cake", spec={"study": "coffee"}, cells=cells,
                                    new=new, controls=[], notes=["Equal steps."], actor=site.actor).id  # fmt: skip
    cell = Attempt(site, site.claim("study"))
    cell.begin()
    cell.train(1, STEPS)
    predictions(cell, 4)
    cell.done("succeeded", scores=scores(0.61))
    site.jobs = {"won": won.id, "broken": broken.id, "paused": paused.id, "live": live.id, "waiting": waiting,
                 "gone": gone, "checked": checked}  # fmt: skip
    site.live = live


@contextmanager
def answering(site: Site, port: int = 0) -> Iterator[int]:
    """An API process for the site, as a thread; its port."""
    app = create_app(site.settings())
    be_the_one(app)
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def filled(folder: Path, database_url: str | None = None) -> Site:
    """The site, which nobody serves yet. `database_url`: an empty database, SQLite where none is said."""
    site = Site(folder, database_url)
    migrate(site.database)
    fill(site)
    return site


@contextmanager
def serving(folder: Path, database_url: str | None = None) -> Iterator[Site]:
    """The site, filled and served on a free port."""
    site = filled(folder, database_url)
    with answering(site) as port:
        site.url = f"http://127.0.0.1:{port}"
        yield site
    site.database.close()


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Polls a condition with a deadline."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def chart(page: Any, name: str) -> Any:
    """A chart of a job's page; its label says the last or the chosen step."""
    return page.locator(f".chart.{name} [role=img]")


def fits(page: Any) -> bool:
    """Nothing of the page lies beyond its right edge."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")
