"""The tables. Rows are written by this package alone, and the status of a job is changed by `jobs.move` alone."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from db.status import LIVE

_LIVE = ", ".join(f"'{status}'" for status in LIVE)
Id = String(64)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, float: Double, int: BigInteger, bool: Boolean, dict[str, Any]: JSON, list: JSON}


class Project(Base):
    __tablename__ = "project"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[float]


class Key(Base):
    """An API key; only its hash is kept."""

    __tablename__ = "key"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list] = mapped_column(JSON)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Study(Base):
    __tablename__ = "study"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), index=True)
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    cells: Mapped[list] = mapped_column(JSON)
    """[{name, scheme, settings, jobs: [job id]}]; cells that train the same share jobs."""
    controls: Mapped[list] = mapped_column(JSON)
    notes: Mapped[list] = mapped_column(JSON)
    created_at: Mapped[float]


class Job(Base):
    __tablename__ = "job"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    study_id: Mapped[str | None] = mapped_column(ForeignKey("study.id"), index=True)
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    """As the user sent it."""
    resolved: Mapped[dict[str, Any] | None]
    """What runs; set when the job has been validated."""
    spec_hash: Mapped[str | None] = mapped_column(String(64), index=True)
    pool: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(default="")
    wanted: Mapped[str] = mapped_column(String(8), default="run")
    wanted_at: Mapped[float | None]
    """Since when the attempt is asked to stop; the grace period counts from here."""
    priority: Mapped[int] = mapped_column(Integer, default=0)
    retries: Mapped[int] = mapped_column(Integer)
    faults: Mapped[int] = mapped_column(Integer, default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    last_seq: Mapped[int] = mapped_column(default=0)
    summary: Mapped[dict[str, Any]]
    """What lists show: step, steps, stage, loss and its curve, scores. Small."""
    created_at: Mapped[float]
    queued_at: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_job_project_id_id", "project_id", "id"),
        Index("ix_job_claim", "pool", "priority", "queued_at", sqlite_where=text("status = 'queued'"),
              postgresql_where=text("status = 'queued'")),
        Index("ix_job_status", "status"),
    )  # fmt: skip


class Runner(Base):
    """One Ray job that claims attempts; its id is Ray's submission id."""

    __tablename__ = "runner"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    pool: Mapped[str] = mapped_column(String(64), index=True)
    code: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    """starting → alive → draining (gets no more claims) → ended."""
    asked_at: Mapped[float | None]
    """Since when its attempt is asked to leave; the grace period counts from here. Without it, a draining runner
    finishes what it has."""
    reason: Mapped[str | None]
    world_size: Mapped[int] = mapped_column(Integer)
    gpus: Mapped[int] = mapped_column(Integer)
    bootstrap_sha256: Mapped[str | None] = mapped_column(String(64))
    """Cleared when the code has been exchanged for the token."""
    token_sha256: Mapped[str | None] = mapped_column(String(64))
    claims: Mapped[int] = mapped_column(Integer, default=0)
    """Attempts so far: above 1 the runner is a used one."""
    created_at: Mapped[float]
    last_seen: Mapped[float | None]
    ended_at: Mapped[float | None]


class Attempt(Base):
    """One job claimed by one runner. Live ones hold a lease."""

    __tablename__ = "attempt"
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    no: Mapped[int] = mapped_column(Integer, primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(default="")
    runner_id: Mapped[str] = mapped_column(ForeignKey("runner.id"), index=True)
    used_runner: Mapped[bool]
    token_sha256: Mapped[str] = mapped_column(String(64))
    lease_expires_at: Mapped[float]
    progress_at: Mapped[float]
    """When the attempt last got on: a step, or a new status."""
    step: Mapped[int] = mapped_column(default=0)
    step_seconds: Mapped[float | None]
    """Median seconds of its recent steps."""
    start_step: Mapped[int | None]
    """Finished steps that it began from; earlier attempts' metrics count up to here."""
    acked_seq: Mapped[int] = mapped_column(default=0)
    result_sha256: Mapped[str | None] = mapped_column(String(64))
    claimed_at: Mapped[float]
    ended_at: Mapped[float | None]

    __table_args__ = (
        # one live attempt per job, whatever a race tries
        Index("uq_attempt_live", "job_id", unique=True, sqlite_where=text(f"status IN ({_LIVE})"),
              postgresql_where=text(f"status IN ({_LIVE})")),
        Index("ix_attempt_lease", "lease_expires_at", sqlite_where=text(f"status IN ({_LIVE})"),
              postgresql_where=text(f"status IN ({_LIVE})")),
    )  # fmt: skip


class Event(Base):
    """The job's history. `seq` has no gaps and follows commit order."""

    __tablename__ = "event"
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    attempt_no: Mapped[int | None] = mapped_column(Integer)
    at: Mapped[float]
    actor: Mapped[str]
    """`user:<key id>`, `runner:<id>` or `service`."""
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]


class Metric(Base):
    """Values of one step of one attempt; at the end of the job folded into `Series`."""

    __tablename__ = "metric"
    job_id: Mapped[str] = mapped_column(primary_key=True)
    attempt_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    values: Mapped[dict[str, Any]]
    __table_args__ = (ForeignKeyConstraint(["job_id", "attempt_no"], ["attempt.job_id", "attempt.no"]),)


class Series(Base):
    """All steps of one metric of a finished job."""

    __tablename__ = "series"
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    steps: Mapped[list] = mapped_column(JSON)
    values: Mapped[list] = mapped_column(JSON)
    preview: Mapped[list] = mapped_column(JSON)
    """At most 100 [step, value] points, for lists."""


class Checkpoint(Base):
    """Index of the checkpoints in the store, whose manifests are the truth."""

    __tablename__ = "checkpoint"
    job_id: Mapped[str] = mapped_column(primary_key=True)
    attempt_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    prefix: Mapped[str]
    created_at: Mapped[float]
    __table_args__ = (ForeignKeyConstraint(["job_id", "attempt_no"], ["attempt.job_id", "attempt.no"]),)


class Dataset(Base):
    """An immutable version of a data set."""

    __tablename__ = "dataset"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), index=True)
    name: Mapped[str]
    manifest_sha256: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    """uploading → validating → ready | refused."""
    prefix: Mapped[str]
    report: Mapped[dict[str, Any] | None]
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    """Validations that were begun."""
    retry_at: Mapped[float | None]
    """When the next may begin; the first at once."""
    created_at: Mapped[float]


class BaseModel(Base):
    """A base that a project's jobs may use. Without any row of the project, every base is allowed."""

    __tablename__ = "base_model"
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), primary_key=True)
    uri: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[str | None]
    licence: Mapped[str]
    created_at: Mapped[float]


class Outbox(Base):
    """Wake-ups for the workers, written with what they are about. Losing one costs time only."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    topic: Mapped[str] = mapped_column(String(32))
    key: Mapped[str]
    created_at: Mapped[float]
    sent_at: Mapped[float | None] = mapped_column(Double, index=True)


class Idempotency(Base):
    __tablename__ = "idempotency"
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), primary_key=True)
    route: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    response: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class Lease(Base):
    """Who may do something of which there is one, until when; `epoch` rises with every holder."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str]
    epoch: Mapped[int]
    expires_at: Mapped[float]


class Audit(Base):
    """What administrators did."""

    __tablename__ = "audit"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str | None] = mapped_column(Id)
    actor: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    at: Mapped[float]
