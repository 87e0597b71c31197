"""The database made anew from the artifact store, for whoever has lost it.

What the store says is taken in, a project, study, data set or job at a time; what the database has is left alone, so
that a second call changes nothing, and a call beside the running service does no harm. A job that had come to its end
is as it was. One that had not waits again and goes on from its newest checkpoint; a pause or cancel that had not been
carried out is forgotten. API keys, the list of allowed bases and the jobs' histories are not in the store.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from db import keys, records, reingest_job
from db.ids import made_at
from db.metrics import insert_new
from db.models import BaseModel, Dataset, Idempotency, Job, Key, Project, Study
from db.session import Database, clock
from trainer.store import DamagedError, MissingError, Store, StoreError

ROWS = {"project": Project, "study": Study, "dataset": Dataset, "job": Job}
NAMES = {"project": "projects", "study": "studies", "dataset": "data sets", "job": "jobs"}
KINDS = {"studies": "study", "uploads": "dataset", "jobs": "job"}
"""Folders of a project and what lies in them, in the order in which they are taken in: jobs name studies."""

Listing = Mapping[str, list[str]]
"""Keys of things by their id, each key relative to its thing."""


@dataclass
class Report:
    """What was taken in, what was there already, what could not be."""

    taken: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROWS, 0))
    there: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROWS, 0))
    jobs: dict[str, int] = field(default_factory=dict)
    """Of those taken in, by status."""
    problems: list[dict[str, str]] = field(default_factory=list)
    """[{id, message}]"""
    keys: dict[str, str] = field(default_factory=dict)
    """New admin keys by name of the project, where a project had none."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"object": "reingest", **asdict(self)}

    def lines(self) -> Iterator[str]:
        """For people."""
        for kind, folder in NAMES.items():
            statuses = ", ".join(f"{n} {status}" for status, n in sorted(self.jobs.items())) if kind == "job" else ""
            there = f", {self.there[kind]} there already" if self.there[kind] else ""
            yield f"{folder}: {self.taken[kind]} taken in{f' ({statuses})' if statuses else ''}{there}"
        yield from (f"{problem['id']}: {problem['message']}" for problem in self.problems)
        yield from (f"admin key of project {name}, shown this once: {key}" for name, key in self.keys.items())


def reingest(database: Database, store: Store, code: str) -> Report:
    """Take in whatever of the store the database lacks; what is damaged is said in the report, and left out. `code`:
    the service's, for jobs that wait. Raises what the store raises where it cannot be asked; MissingError where nothing
    at all is in it."""
    return _Reingest(database, store, code).all()


class _Reingest:
    """The way through a store."""

    def __init__(self, database: Database, store: Store, code: str):
        self.database, self.store, self.code, self.report = database, store, code, Report()
        self.versions = set[str]()
        """Of data sets that are whole, in the project at hand."""

    def all(self) -> Report:
        listed = self._listed()
        if not listed:
            raise MissingError(f"{self.store.uri} holds no project; is it the service's store?")
        for project_id, kinds in sorted(listed.items()):
            if not set(KINDS) & set(kinds):  # of an empty one nothing is lost
                continue
            self._take("project", {project_id: []}, self._project)
            add = {"studies": self._study, "uploads": self._dataset, "jobs": self._job}
            self.versions = {version for version, names in kinds.get("datasets", {}).items() if "files.json" in names}
            for folder, kind in KINDS.items():
                self._take(kind, kinds.get(folder, {}), add[folder], project_id)
            self._key(project_id)
        return self.report

    def _listed(self) -> dict[str, dict[str, dict[str, list[str]]]]:
        """{project: {folder: {id: keys}}}; recordings left out, of which there are the most."""
        found: dict[str, dict[str, dict[str, list[str]]]] = {}
        for key in self.store.list("projects/"):
            project, folder, id_, rest = [*key.split("/", 4)[1:], "", "", ""][:4]
            if folder != "blobs":
                found.setdefault(project, {}).setdefault(folder, {}).setdefault(id_, []).append(rest)
        return found

    def _take(self, kind: str, listing: Listing, add: Callable[..., bool], *where: str) -> None:
        model, report = ROWS[kind], self.report
        with self.database.read() as session:
            known = {id_ for id_ in listing if session.get(model, id_) is not None}
        report.there[kind] += len(known)
        for id_ in sorted(set(listing) - known):
            try:
                new = add(id_, *where, listing[id_])
            except (ValueError, KeyError, TypeError, AttributeError, IntegrityError, DataError) as error:
                if isinstance(error, StoreError) and not isinstance(error, MissingError | DamagedError):
                    raise  # not this one's fault: the store cannot be asked
                message = " ".join(str(error).split()) if isinstance(error, ValueError) else repr(error)
                report.problems.append({"id": id_, "message": f"not taken in: {message}"})
                continue
            (report.taken if new else report.there)[kind] += 1

    def _insert(self, model: Any, row: Mapping[str, Any]) -> bool:
        values = {name: value for name, value in row.items() if value is not None}
        with self.database.write() as session:
            return session.scalar(insert_new(session, model).values(**values).returning(model.id)) is not None

    # ---- a project, a study, a data set, a job

    def _project(self, id_: str, _: object) -> bool:
        key, said = f"projects/{id_}/project.json", {"name": id_, "created_at": _made(id_)}
        try:
            said |= records.read(self.store, key)
        except (MissingError, DamagedError) as error:  # its jobs are worth more than its name
            self.report.problems.append({"id": id_, "message": f"is named by its id from now on: {error}"})
        with self.database.write() as session:
            made_at_ = said["created_at"] or clock(session)
            row = insert_new(session, Project).values(id=id_, name=id_, created_at=made_at_)
            if session.scalar(row.returning(Project.id)) is None:
                return False
            named = select(Project).where(Project.name == said["name"], Project.id != id_)
            if (rival := session.scalar(named)) is not None and not _gives_way(session, rival.id, id_):
                message = f"the name {said['name']!r} is another project's; this one is named by its id from now on"
                self.report.problems.append({"id": id_, "message": message})
            else:
                session.execute(update(Project).where(Project.id == id_).values(name=said["name"]))
        return True

    def _study(self, id_: str, project_id: str, _: list[str]) -> bool:
        row = records.read(self.store, f"projects/{project_id}/studies/{id_}/study.json")
        return self._insert(Study, {**row, "id": id_, "project_id": project_id})

    def _dataset(self, id_: str, project_id: str, names: list[str]) -> bool:
        place = f"projects/{project_id}/uploads/{id_}"
        row = records.read(self.store, f"{place}/dataset.json")
        row |= {"id": id_, "project_id": project_id, "prefix": place}
        if "settled.json" in names:
            row |= records.read(self.store, f"{place}/settled.json")
            if row["status"] == "ready" and row["manifest_sha256"] not in self.versions:
                raise MissingError(f"its version {row['manifest_sha256']} is not in the store")
        else:  # nobody knows whether all parts had come: its sender says so again
            row["status"] = "validating" if {"uri", "manifest.jsonl"} & set(names) else "uploading"
        return self._insert(Dataset, row)

    def _job(self, id_: str, project_id: str, names: list[str]) -> bool:
        left = reingest_job.read(self.store, f"projects/{project_id}/jobs/{id_}", names, self.code, _made(id_))
        with self.database.write() as session:
            study = left.row.get("study_id")
            if study is not None and session.get(Study, study) is None:
                left.row["study_id"] = None
                self.report.problems.append({"id": id_, "message": f"its study {study} is not in the store"})
            if not reingest_job.add(session, left):
                return False
        status = left.row["status"]
        self.report.jobs[status] = self.report.jobs.get(status, 0) + 1
        return True

    def _key(self, project_id: str) -> None:
        """Keys are not in the store: a project without an admin's gets one."""
        with self.database.write() as session:
            there = [key for key in keys.listed(session, project_id) if key.revoked_at is None]
            if not any("admin" in key.scopes for key in there):
                name = session.get_one(Project, project_id).name
                self.report.keys[name] = keys.issue(session, project_id, "reingest", "admin", "service")[1]


def _made(id_: str) -> float | None:
    try:
        return made_at(id_)
    except ValueError:
        return None


def _gives_way(session: Session, empty: str, to: str) -> bool:
    """A project that the new database began with, in which nothing has been done, makes room for the one of its name
    that was lost; its keys and allowed bases go over. False, and nothing done, where something has been."""
    for model in (Job, Study, Dataset):
        if session.scalar(select(model.id).where(model.project_id == empty).limit(1)) is not None:
            return False
    for model in (Key, BaseModel):
        session.execute(update(model).where(model.project_id == empty).values(project_id=to))
    session.execute(delete(Idempotency).where(Idempotency.project_id == empty))
    session.execute(delete(Project).where(Project.id == empty))
    return True
