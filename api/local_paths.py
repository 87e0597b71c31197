"""Which places of the server's own disk a spec may name."""

from pathlib import PurePosixPath, PureWindowsPath

from db import datasets
from db.settings import Settings
from trainer.fields import Problem, SpecError, walk
from trainer.spec import JobSpec


def leaves(ref: str) -> bool:
    """Whether a reference would lead out of the folder that it is relative to: also to S3, which the service reads
    with its own keys."""
    path = PurePosixPath(ref)
    elsewhere = path.is_absolute() or ref.startswith("~") or "://" in ref
    return elsewhere or ".." in path.parts or bool(PureWindowsPath(ref).drive)


def confined(job: JobSpec, settings: Settings) -> None:
    """SpecError where a reference would leave the data roots: a service must not read its host's disk for strangers.
    The embedded service (`ATTUNE_TRUSTED`) runs as the user who asks, and may."""
    if settings.trusted:
        return
    spec = job.model_dump(mode="json", by_alias=True)
    references: dict[str, str | None] = dict(datasets.references(spec))
    references |= {field: value for field, value in walk(spec) if field.endswith(".retriever")}
    references["init_from"] = job.init_from
    references |= {"base": None if "://" in job.base else job.base}
    problems = [
        Problem(field, ref, "names a place outside the service's data folders; use a relative reference without '..'")
        for field, ref in references.items()
        if ref and leaves(ref)
    ]
    if problems:
        raise SpecError(problems)
