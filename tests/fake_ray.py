"""Ray as `worker.ray_jobs` shows it, in memory: what tests of the worker's logic have outside. The real one is tested
in test_ray_jobs.py."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.ray_jobs import OURS, RayJob, RayRefusedError, RayUnavailableError, Status, Stopped


@dataclass(frozen=True)
class Submitted:
    """What was asked for."""

    entrypoint: str
    env: Mapping[str, str]
    metadata: Mapping[str, str]


class FakeRay:
    """Nothing moves by itself: jobs wait until a test has them `run` or `end`."""

    def __init__(self) -> None:
        self.jobs: dict[str, RayJob] = {}
        self.submitted: dict[str, Submitted] = {}
        self.stop_wished: set[str] = set()
        self.calls: list[str] = []
        self.away = False
        """No answer to anything."""
        self.lost_answers = False
        """What is asked for happens, and the answer does not arrive."""
        self.refuses = ""
        """The reason for which a submission is refused."""

    # ---- what the cluster does

    def run(self, submission_id: str) -> None:
        """It has its resources: started; a job that was to be stopped dies of it at once."""
        assert self.jobs[submission_id].status == "PENDING"
        self._become(submission_id, "STOPPED" if submission_id in self.stop_wished else "RUNNING", "")

    def end(self, submission_id: str, status: Status = "SUCCEEDED", message: str = "") -> None:
        """Its process is over."""
        self._become(submission_id, status, message)

    def _become(self, submission_id: str, status: Status, message: str) -> None:
        self.jobs[submission_id] = replace(self.jobs[submission_id], status=status, message=message)

    # ---- worker.ray_jobs.RayJobs

    def version(self) -> str:
        self._answer("version")
        return "2.60.0"

    def submit(self, submission_id: str, entrypoint: str, *, env: Mapping[str, str], num_cpus: float = 0,
               num_gpus: float = 0, resources: Mapping[str, float] | None = None, working_dir: str | None = None,
               metadata: Mapping[str, str] | None = None) -> None:  # fmt: skip
        self._answer("submit")
        if self.refuses:
            raise RayRefusedError(self.refuses)
        if submission_id not in self.jobs:
            told = {**(metadata or {}), **OURS}
            self.jobs[submission_id] = RayJob(submission_id, "PENDING", "", told)
            self.submitted[submission_id] = Submitted(entrypoint, dict(env), told)
        if self.lost_answers:
            raise RayUnavailableError("no answer")

    def info(self, submission_id: str) -> RayJob | None:
        self._answer("info")
        return self.jobs.get(submission_id)

    def list(self) -> list[RayJob]:
        self._answer("list")
        return [job for job in self.jobs.values() if job.metadata.items() >= OURS.items()]

    def stop(self, submission_id: str) -> Stopped:
        self._answer("stop")
        job = self.jobs.get(submission_id)
        if job is None:
            return "unknown"
        if job.ended:
            return "ended"
        self.stop_wished.add(submission_id)
        if job.status == "PENDING":
            return "pending"
        self._become(submission_id, "STOPPED", "")
        return "stopping"

    def delete(self, submission_id: str) -> bool:
        self._answer("delete")
        job = self.jobs.get(submission_id)
        if job is not None and not job.ended:
            return False
        self.jobs.pop(submission_id, None)
        return True

    def logs(self, submission_id: str, tail: int = 100) -> str | None:
        self._answer("logs")
        return "" if submission_id in self.jobs else None

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if self.away:
            raise RayUnavailableError("no answer")
