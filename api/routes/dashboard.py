"""The pages. Whatever they show, the JSON API under /v1 shows too."""

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import yaml
from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from api import shapes
from api.dashboard import words
from api.dashboard.pages import Page, SignedOut, render, static_file
from api.deps import COOKIE, App, context
from api.errors import ApiError
from api.routes.jobs import found as a_job
from api.routes.studies import found as a_study
from api.routes.studies import table as study_table
from db import events, jobs, keys, metrics, studies
from db.keys import Holder
from db.session import now
from db.status import JOB

router = APIRouter(route_class=Page, include_in_schema=False)

HOME = "/dashboard/jobs"
KEPT_S = 30 * 86400
"""How long a browser stays signed in."""
ROWS, EVENTS = 25, 30
"""Jobs and studies of a page; events shown at first, and at every 'older'."""


def _viewer(request: Request) -> Holder:
    """Who is signed in. Pages only show: what changes something goes to /v1, which also checks where it comes from."""
    if secret := request.cookies.get(COOKIE):
        with context(request).database.read() as session:
            found = keys.holder(session, secret)
        if found is not None and "read" in found.scopes:
            return found
    raise SignedOut


Viewer = Annotated[Holder, Depends(_viewer)]


def _from_here(request: Request) -> None:
    """A form of another site must not sign anybody in or out."""
    origin = request.headers.get("origin")
    if origin is None or origin.split("://", 1)[-1] != request.headers.get("host"):
        raise ApiError(403, "this form must be sent from the dashboard's own page", code="cross_origin")


@router.get("/dashboard/static/{version}/{name:path}")
def static(version: str, name: str) -> Response:
    """Style, scripts, icon."""
    return static_file(version, name)


@router.get("/")
@router.get("/dashboard")
def home() -> Response:
    """The first page is the list of jobs."""
    return RedirectResponse(HOME, 303)


# --------------------------------------------------------------------------------------------------------- login


def _place(wanted: str) -> str:
    """Where to go after the login: pages of this dashboard only."""
    return wanted if wanted.startswith("/dashboard/") and "\\" not in wanted else HOME


@router.get("/dashboard/login")
def login_page(next: str = HOME) -> Response:
    """Asks for a key."""
    return render("login.html", who=None, next=_place(next), problem="")


@router.post("/dashboard/login", dependencies=[Depends(_from_here)])
def login(
    request: Request, app: App, key: Annotated[str, Form()] = "", next: Annotated[str, Form()] = HOME
) -> Response:
    """Keeps the key in a cookie that no script can read."""
    with app.database.read() as session:
        found = keys.holder(session, key.strip())
    if found is None:
        problem = "No such key, or it has been revoked. Keys begin with attune- and are shown once, when issued."
        return render("login.html", 401, who=None, next=_place(next), problem=problem)
    response = RedirectResponse(_place(next), 303)
    response.set_cookie(
        COOKIE, key.strip(), max_age=KEPT_S, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


@router.post("/dashboard/logout", dependencies=[Depends(_from_here)])
def logout() -> Response:
    """Forgets the key."""
    response = RedirectResponse("/dashboard/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


# ---------------------------------------------------------------------------------------------------------- jobs


class Choice(BaseModel):
    """What of the list is shown; all of it stands in the address."""

    status: list[str] = []
    name: str = ""
    study: str = ""
    sort: Literal["created_at", "priority", "name"] = "created_at"
    order: Literal["asc", "desc"] = "desc"
    after: str = ""

    def url(self, **changes: Any) -> str:
        """The address of this choice with changes; a changed choice begins at its first page."""
        values = {**self.model_dump(), "after": "", **changes}
        said = {k: v for k, v in values.items() if v != Choice.model_fields[k].default}
        return HOME + ("?" + urlencode(said, doseq=True) if said else "")

    def sorted_by(self, column: str) -> str:
        """The address of the list sorted by a column; once more turns it round."""
        usual = "asc" if column == "name" else "desc"
        turned = {"asc": "desc", "desc": "asc"}[self.order]
        return self.url(sort=column, order=turned if self.sort == column else usual)


@router.get("/dashboard/jobs")
def job_list(request: Request, app: App, who: Viewer, choice: Annotated[Choice, Query()]) -> Response:
    """Jobs of the project."""
    if unknown := set(choice.status) - set(JOB):
        raise ApiError(400, f"no such status: {', '.join(sorted(unknown))}; known: {', '.join(JOB)}", code="status")
    with app.database.read() as session:
        rows, more = jobs.page(
            session, who.project_id, status=choice.status, study_id=choice.study or None, name=choice.name or None,
            sort=choice.sort, ascending=choice.order == "asc", after=choice.after or None, limit=ROWS,
        )  # fmt: skip
        known = {s.id: s.name for s in studies.page(session, who.project_id, limit=100)[0]}
        return render(
            "jobs.html", who=_name(session, who), choice=choice, jobs=[shapes.job(row) for row in rows], more=more,
            studies=known, counts=jobs.counts(session, who.project_id), now=_now(session),
            server=("" if request.url.scheme == "http" else "--proto-default https ") + request.url.netloc,
        )  # fmt: skip


@router.get("/dashboard/jobs/{job_id}")
def job_page(job_id: str, app: App, who: Viewer) -> Response:
    """One job: where it is, its curves, its history, its predictions, what it was made from."""
    with app.database.read() as session:
        row = a_job(session, job_id, who)
        tries = jobs.attempts(session, job_id)
        job = shapes.job_in_full(row, tries, metrics.checkpoints(session, job_id))
        study = studies.find(session, row.study_id, who.project_id) if row.study_id else None
        return render(
            "job.html", who=_name(session, who), job=job, study=study, history=_history(session, job_id, who),
            left=words.left(job, tries[-1].step_seconds if tries else None), now=_now(session),
            commands=words.commands(job, "write" in who.scopes), spec=_yaml(row.spec),
            resolved=_yaml((row.resolved or {}).get("spec")),
        )  # fmt: skip


@router.get("/dashboard/jobs/{job_id}/events")
def history(job_id: str, app: App, who: Viewer, before: int | None = None, since: int | None = None) -> Response:
    """Lines of a job's history, newest first: those after `since`, or a page of those before `before`."""
    with app.database.read() as session:
        a_job(session, job_id, who)
        return render("events.html", **_history(session, job_id, who, before, since))


@router.get("/dashboard/jobs/{job_id}/files")
def files(job_id: str, app: App, who: Viewer) -> Response:
    """What the job has left in the store, by folder."""
    with app.database.read() as session:
        row = a_job(session, job_id, who)
        start = f"projects/{row.project_id}/jobs/{row.id}/"
    folders: dict[str, list[str]] = {}
    for key in app.store.list(start):
        folder, _, name = key.removeprefix(start).rpartition("/")
        folders.setdefault(folder, []).append(name)
    return render("files.html", job_id=job_id, folders=folders)


def _history(
    session: Session, job_id: str, who: Holder, before: int | None = None, since: int | None = None
) -> dict[str, Any]:
    if since is None:
        rows = events.newest(session, job_id, before, EVENTS + 1)
        older = rows[EVENTS - 1].seq if len(rows) > EVENTS else None
    else:
        rows, older = events.after(session, job_id, since, 100)[::-1], None
    names = {key.id: key.name for key in keys.listed(session, who.project_id)}
    shown = [{**shapes.event(row), "who": words.actor(row.actor, names)} for row in rows[: None if since else EVENTS]]
    return {"job_id": job_id, "events": shown, "older": older}


# ------------------------------------------------------------------------------------------------------- studies


@router.get("/dashboard/studies")
def study_list(app: App, who: Viewer, after: str | None = None) -> Response:
    """Studies of the project, newest first."""
    with app.database.read() as session:
        rows, more = studies.page(session, who.project_id, after, ROWS)
        counts = studies.counts(session, [row.id for row in rows])
        shown = [{**shapes.study(row), "jobs": counts[row.id]} for row in rows]
        return render("studies.html", who=_name(session, who), studies=shown, more=more, now=_now(session))


@router.get("/dashboard/studies/{study_id}")
def study_page(study_id: str, app: App, who: Viewer, task: str | None = None) -> Response:
    """A study's cells and how far their jobs are; compared on this task of the test, where it has several."""
    with app.database.read() as session:
        row = a_study(session, study_id, who)
        members = studies.members(session, study_id)
        return render(
            "study.html", who=_name(session, who), now=_now(session),
            study=shapes.study(row, members) | {"notes": studies.notes(row, members)},
            jobs={j.id: shapes.job(j) for j in members}, spec=_yaml(row.spec), task=task,
        )  # fmt: skip


@router.get("/dashboard/studies/{study_id}/table")
def comparison(study_id: str, app: App, who: Viewer, task: str | None = None) -> Response:
    """What the study shows so far, as the API says it; computed apart from the page, for it takes its time."""
    return render("table.html", table=study_table(study_id, app, who, task))


# ------------------------------------------------------------------------------------------------------- helpers


def _name(session: Session, who: Holder) -> str:
    """The name of the key that is signed in."""
    return next((key.name for key in keys.listed(session, who.project_id) if key.id == who.key_id), who.key_id)


def _now(session: Session) -> float:
    return session.execute(select(now(session))).scalar_one()


def _yaml(spec: Any) -> str:
    """A spec as its author would write it."""
    return "" if not spec else yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100)
