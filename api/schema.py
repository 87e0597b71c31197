"""What the API answers, field by field: every answer is checked against these, and openapi.json shows them."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from db.status import AttemptStatus, JobStatus, Wanted

Row = TypeVar("Row")


class Shape(BaseModel):
    """Says everything there is."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Shape):
    """`message` names the field, what was given and what to do; `param` and `code` say the same to programs."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "server_error"]
    param: str | None
    code: str | None


class ErrorBody(Shape):
    """The one shape of every error."""

    error: ErrorDetail


class Page(Shape, Generic[Row]):
    """A part of a list; the next is asked for with `after=<last_id>`."""

    object: Literal["list"]
    data: list[Row]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Progress(Shape):
    """How far a job is: `state` of its attempt, stage, step of steps, the last loss."""

    state: str | None
    stage: str | None
    step: int | None
    steps: int | None
    loss: float | None


class Score(BaseModel):
    """A metric of the test set with its interval."""

    model_config = ConfigDict(extra="allow")  # stored as the trainer said it
    metric: str
    value: float | None


class Job(Shape):
    """A job as lists show it. `curve`: [step, loss], about a hundred points; times are unix seconds."""

    object: Literal["job"]
    id: str
    name: str
    study_id: str | None
    status: JobStatus
    wanted: Wanted
    reason: str | None
    message: str
    priority: int
    spec_hash: str | None
    attempts: int
    progress: Progress
    curve: list[tuple[int, float]]
    metric: str | None
    scores: list[Score]
    tags: dict[str, Any]
    created_at: int
    queued_at: int | None
    started_at: int | None
    finished_at: int | None


class Attempt(Shape):
    """One try of a job."""

    id: str
    no: int
    status: AttemptStatus
    reason: str | None
    message: str
    runner_id: str
    start_step: int | None
    step: int
    claimed_at: int
    ended_at: int | None


class Checkpoint(Shape):
    """A checkpoint in the store."""

    object: Literal["checkpoint"]
    id: str
    step: int
    attempt: int
    prefix: str
    created_at: int


class JobInFull(Job):
    """A job with what it was sent as, what runs (null until it has been validated), and how it went."""

    spec: dict[str, Any]
    resolved: dict[str, Any] | None
    attempt_list: list[Attempt]
    checkpoints: list[Checkpoint]


class Event(Shape):
    """A line of a job's history."""

    object: Literal["event"]
    id: str
    seq: int
    attempt: int | None
    created_at: int
    actor: str
    type: str
    data: dict[str, Any]


class Metrics(Shape):
    """Series by name as [step, value]; `total_steps`: how many points each has before it is thinned."""

    object: Literal["metrics"]
    job_id: str
    series: dict[str, list[tuple[int, float]]]
    total_steps: dict[str, int]


class Artifact(Shape):
    """A file in the store; `id` is its path."""

    object: Literal["artifact"]
    id: str


class Study(Shape):
    """A study and how many of its jobs are in which status."""

    object: Literal["study"]
    id: str
    name: str
    cells: list[dict[str, Any]]
    controls: list[Any]
    notes: list[str]
    jobs: dict[str, int]
    created_at: int


class StudyInFull(Study):
    """A study with its spec, and in each cell the jobs."""

    spec: dict[str, Any]


class TaskReport(Shape):
    """`report.json` and `report.txt` of one task."""

    report: dict[str, Any]
    text: str


class StudyReport(TaskReport):
    """What a study shows so far, as the trainer's own `report.json` and `report.txt`; over several tasks their ranks,
    and in `tasks` the report of each."""

    object: Literal["study_report"]
    study_id: str
    tasks: dict[str, TaskReport]


class Key(Shape):
    """A key without its secret."""

    object: Literal["key"]
    id: str
    name: str
    scopes: list[str]
    created_at: int
    revoked_at: int | None


class IssuedKey(Key):
    """A new key with its secret, which nothing tells again."""

    secret: str


class Base(Shape):
    """A base that jobs may use. `revision` null: any."""

    object: Literal["base"]
    id: str
    revision: str | None
    licence: str


class Deleted(Shape):
    """What is no longer there."""

    object: Literal["key", "base"]
    id: str
    deleted: Literal[True]


class Dataset(Shape):
    """A data set; `sha256` and the counts come with its validation."""

    object: Literal["dataset"]
    id: str
    name: str
    status: str
    sha256: str | None
    rows: int | None
    errors: Any
    warnings: Any
    notes: Any
    created_at: int


class DatasetInFull(Dataset):
    """A data set with the report of its validation, line by line."""

    report: dict[str, Any] | None


class DatasetPart(Shape):
    """A part that was received."""

    object: Literal["dataset.part"]
    dataset_id: str
    number: int
    bytes: int
    sha256: str
