"""Studies: a grid of jobs that are meant to be compared, and what is held equal between them (light).

`grid` lists values for any field of the job, by dotted path or by a name that only one field has. Cells that would
train the same thing (text-only at five speech fractions) are trained once and shown wherever they belong.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from trainer.corpus import Corpus
from trainer.fields import Problem, Spec, SpecError, naming, nearest, problem, readable
from trainer.grid import WITHOUT_RECORDINGS, points, said, short, with_value
from trainer.metrics import named
from trainer.resolve import Resolved, resolve
from trainer.spec import JobSpec, parse_job, read_yaml
from trainer.stage import RECORDINGS, cumulative, shares
from trainer.strategies import Custom, LimitedSpeech, LinearProbe, Majority, Untuned
from trainer.suite import Suite

SEEDS = ("seed", "data.subset_seed")
Control = Literal["majority", "untuned", "linear_probe", "cascade", "exposure_matched"]


class Hold(Spec):
    """What is equal in all cells."""

    steps: Literal["equal", "free"] = "equal"
    """Optimiser steps: `equal` gives every cell as many as the longest would have."""
    speech_presentations: Literal["equal", "free"] = "equal"
    """How often each recording is shown: `equal` in all mixing cells with the same recordings."""


class StudySpec(Spec):
    """A grid of jobs over one base and data; every other field of a job may stand beside these."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True, allow_inf_nan=False)

    study: str = Field(min_length=1)
    """Name of the study."""
    grid: dict[str, list[Any]] = Field(min_length=1)
    """Values per field, by dotted path or unambiguous name; `seed` and `subset_seed` make repetitions (where there are
    several subsets of the recordings, the seeds of each are averaged first)."""
    also: list[dict[str, Any]] = []
    """Single cells beside the grid, each a mapping like `grid` with one value per key; a list of `seed` or
    `subset_seed` makes repetitions; null puts a field back to its default."""
    hold: Hold = Hold()
    """What is held equal."""
    controls: list[Control] | None = None
    """Rows of every comparison beside the cells: `majority`, `untuned`, `linear_probe`, `cascade` (of the
    text-only cells), `exposure_matched` (direct mixing with as many speech presentations as the curriculum).
    Default: all that the task and the data allow; a tool without them flatters itself."""


Read = Callable[[JobSpec], Corpus]
"""Reads the corpus of a job; `trainer.corpus.Reader` reads each data set once."""


@dataclass
class Cell:
    """One point of the grid; its runs differ in seeds only."""

    name: str
    settings: dict[str, Any]
    """Grid fields of this cell by short name, without seeds."""
    runs: list[Resolved] = field(default_factory=list)


@dataclass
class Expanded:
    """A study ready to run."""

    study: StudySpec
    cells: list[Cell]
    baselines: list[Cell]
    """The controls that are jobs of their own: they train nothing and have no seed."""
    controls: list[Control]
    """As the study says, or all that apply."""
    notes: list[str]
    """What could not be held equal, and which cells are one."""

    def jobs(self) -> dict[str, Resolved]:
        """Distinct jobs by hash."""
        return {run.hash: run for cell in [*self.cells, *self.baselines] for run in cell.runs}


def load(path: Path | str) -> JobSpec | StudySpec | Suite:
    """A spec file."""
    return parse(read_yaml(path))


def parse(data: Any) -> JobSpec | StudySpec | Suite:
    """What parsed YAML or JSON means: a job, a study (`study:`) or a suite (`suite:`)."""
    if isinstance(data, Mapping) and "suite" in data:
        return _validated(Suite, data)
    if isinstance(data, Mapping) and "study" in data:
        return _validated(StudySpec, data)
    return parse_job(data)


def _validated(model: Any, data: Any) -> Any:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise readable(error, data) from None


def expand(study: StudySpec, read: Read) -> Expanded:
    """All cells of a study, resolved, with what `hold` asks for carried out or said to be impossible."""
    template = _template(study)
    cells: dict[str, Cell] = {}
    jobs: list[tuple[str, JobSpec]] = []
    found = points(study.grid, study.also, template)
    # A field with one value in all cells does not tell them apart, so it stays out of their names.
    varied = {k for p in found for k in p if len({repr(q.get(k, "not said")) for q in found}) > 1 and k not in SEEDS}
    called = {k: short(k) if [*map(short, varied)].count(short(k)) == 1 else k for k in varied}
    for settings in found:
        shown = {called[k]: v for k, v in settings.items() if k in varied}
        name = " ".join(said(k, v) for k, v in shown.items()) or study.study
        cells.setdefault(name, Cell(name, shown))
        data: dict[str, Any] = {**template, "name": f"{study.study}/{name}"}
        for key, value in settings.items():
            data = with_value(data, key.split("."), value)
        recipe, rows = data.get("recipe"), data.get("data")
        if isinstance(recipe, Mapping) and isinstance(rows, Mapping) and recipe.get("scheme") in WITHOUT_RECORDINGS:
            # what the mixing cells share says nothing about a cell without recordings
            kept = {k: v for k, v in recipe.items() if k not in ("speech_presentations", "speech_share")}
            data = {**data, "recipe": kept, "data": {k: v for k, v in rows.items() if k != "pairing"}}
        with naming(data["name"]):
            jobs.append((name, _only_speech(parse_job(data), study.hold)))

    _one_run_per_seed(jobs)
    notes: list[str] = []
    wanted = _controls(study, jobs, read)
    jobs = [(name, _with_cascade(job, wanted)) for name, job in jobs]
    if study.hold.steps == "equal":
        jobs = _hold_steps(jobs, read)
    if study.hold.speech_presentations == "equal":
        if varied & {"recipe.speech_presentations", "recipe.speech_share"}:
            message = "the grid varies how often recordings are shown; say hold: {speech_presentations: free}"
            raise problem("hold.speech_presentations", message, "equal")
        jobs = _hold_presentations(jobs, read, notes)
    known = [(name, _resolved(job, read)) for name, job in jobs]
    if "exposure_matched" in wanted:
        known += _exposure_matched(known, read, cells, notes)
    for name, job in known:
        if job.hash not in {run.hash for run in cells[name].runs}:
            cells[name].runs.append(job)
    _say_same(cells, notes)
    baselines = _baselines(study, known, wanted, read)
    if study.study in cells and study.study in {cell.name for cell in baselines}:
        message = "is the name of a control too, and a cell in which nothing varies is named after its study; "
        raise problem("study", f"{message}choose another name", study.study)
    return Expanded(study, list(cells.values()), baselines, wanted, notes)


def _corpus(job: JobSpec, read: Read) -> Corpus:
    with naming(job.name):
        return read(job)


def _resolved(job: JobSpec, read: Read) -> Resolved:
    with naming(job.name):
        return resolve(job, read(job))


def _controls(study: StudySpec, jobs: list[tuple[str, JobSpec]], read: Read) -> list[Control]:
    """The controls of a study: as said, else all that its task and data allow."""
    if study.controls is not None:
        return study.controls
    job = jobs[0][1]
    corpus = _corpus(job, read)
    assert corpus.test is not None, "read_corpus refuses a job without a test set"
    heard = all(u.audio for u in corpus.test.rows)
    forms = {corpus.tasks[u.task].answer for u in corpus.test.rows}
    schemes = {j.recipe.scheme for _, j in jobs if isinstance(j.recipe, LimitedSpeech)}
    learns = any(_corpus(j, read).counts().get("speech") for _, j in jobs) and schemes != {"text_only"}
    applies: dict[Control, bool] = {
        "majority": "choice" not in forms,
        "untuned": heard,
        "linear_probe": heard and learns and not forms & {"text", "choice"},
        "cascade": heard and "text_only" in schemes and job.tuning.method == "lora",
        "exposure_matched": "curriculum" in schemes,
    }
    return [name for name, wish in applies.items() if wish]


def _baselines(
    study: StudySpec, known: list[tuple[str, Resolved]], wanted: list[Control], read: Read
) -> list[Cell]:
    """The controls that answer by themselves; those that learn see the rows that cells see."""
    runs = [run for _, run in known]
    cells: list[Cell] = []

    def add(title: str, recipe: Majority | Untuned | LinearProbe, like: Sequence[Resolved]) -> None:
        if title in {cell.name for cell in cells}:  # as many recordings, but others
            title = f"{title} of {like[0].sources['speech'].ref}"
        cells.append(Cell(title, {}, [_baseline(f"{study.study}/{title}", recipe, run.spec, read) for run in like]))

    for name in wanted:
        match name:
            case "majority":
                add("majority", Majority(), [max(runs, key=lambda run: sum(p.rows for p in run.sources.values()))])
            case "untuned":
                add("untuned", Untuned(), runs[:1])
            case "linear_probe":
                heard = _heard(runs)
                if not heard:
                    message = "a linear probe learns from recordings, and no cell has any; leave it out"
                    raise problem("controls", message, "linear_probe")
                for like in heard:
                    add(f"linear probe, {like[0].sources['speech'].rows} recordings", LinearProbe(), like)
    return cells


SIMPLY = {"text_twin": False, "cascade": False, "dev": None, "select": "last", "guards": []}
"""How the simple rows are scored: the test alone."""


def _baseline(name: str, recipe: Majority | Untuned | LinearProbe, like: JobSpec, read: Read) -> Resolved:
    """A job of `recipe` on the data, base and test of another. SpecError where it cannot answer that test."""
    kept = ("base", "revision", "family", "language", "source", "data", "tasks", "precision", "resources", "tags")
    fields = {key: getattr(like, key) for key in kept}
    corpus = read(like)
    assert corpus.test is not None, "resolve() refuses a job without a test set"
    evaluate, forms = like.evaluate.model_copy(update=SIMPLY), {corpus.tasks[u.task].answer for u in corpus.test.rows}
    if not forms <= named(evaluate.metric).answers:  # of the first of several tasks
        evaluate = evaluate.model_copy(update={"metric": "auto"})
    try:
        return resolve(JobSpec(name=name, recipe=recipe, evaluate=evaluate, **fields), corpus)
    except SpecError as error:
        message = f"{'; '.join(p.message for p in error.problems)}; leave it out"
        raise problem("controls", message, recipe.name) from None


def _heard(runs: Sequence[Resolved]) -> list[list[Resolved]]:
    """Runs with different recordings to train on, fewest first; those that differ in `subset_seed` only are
    repetitions, and stand together."""
    sets = {run.sources["speech"].sha256: run for run in reversed(runs) if "speech" in run.sources}
    rows: dict[tuple, dict[int, Resolved]] = {}
    for run in reversed(sets.values()):
        data = run.spec.data
        chosen = (data.speech_fraction, data.speech_per_label, data.speech_rows)
        key = (run.sources["speech"].rows, *chosen, data.speech, data.corpus)
        rows.setdefault(key, {})[data.subset_seed] = run
    return [list(rows[key].values()) for key in sorted(rows, key=lambda key: (key[0], repr(key)))]


def _with_cascade(job: JobSpec, wanted: list[Control]) -> JobSpec:
    """Text-only cells are scored as a cascade too, where it is a control."""
    if "cascade" in wanted and isinstance(job.recipe, LimitedSpeech) and job.recipe.scheme == "text_only":
        return job.model_copy(update={"evaluate": job.evaluate.model_copy(update={"cascade": True})})
    return job


def presentations(resolved: Resolved, *sources: str) -> float:
    """How often each usable row of `sources` (default: all recordings) is shown over all stages, on average."""
    batch, asked = resolved.spec.global_batch, [s for s in sources or RECORDINGS if s in resolved.sources]
    shown = sum(
        float(cumulative(stage.mix[source], stage.steps * batch)[-1])  # type: ignore[index]
        for source in asked
        for stage in resolved.stages
        if source in stage.mix
    )
    return shown / sum(resolved.sources[source].rows for source in asked) if asked else 0.0


def _template(study: StudySpec) -> dict[str, Any]:
    extra = dict(study.model_extra or {})
    known = set(JobSpec.model_fields)
    own = set(StudySpec.model_fields)
    problems = []
    for key in extra:
        if key == "name":
            problems.append(Problem(key, None, "a study is named by `study`; leave name out"))
        elif key not in known:
            problems.append(Problem(key, None, f"unknown key; {nearest(key, sorted(known | own))}"))
    if problems:
        raise SpecError(problems)
    return extra


def _only_speech(job: JobSpec, hold: Hold) -> JobSpec:
    """At equal steps a cell of recordings alone cannot also follow the mixing cells' presentations: it shows its
    recordings as often as the steps make it, and `notes` says how often that is."""
    if hold.steps == "equal" and isinstance(job.recipe, LimitedSpeech) and job.recipe.scheme == "speech_only":
        free = {"speech_presentations": None, "speech_share": None}
        return job.model_copy(update={"recipe": job.recipe.model_copy(update=free)})
    return job


def _one_run_per_seed(jobs: list[tuple[str, JobSpec]]) -> None:
    """Two runs of one cell with the same seeds would be counted as two; they come from `also` repeating `grid`."""
    seen = set()
    for name, job in jobs:
        key = (name, job.seed, job.data.subset_seed)
        if key in seen:
            raise problem("also", f"the cell '{name}' with seed {job.seed} stands twice; take one out")
        seen.add(key)


def _hold_steps(jobs: list[tuple[str, JobSpec]], read: Read) -> list[tuple[str, JobSpec]]:
    """Every cell as long as the longest, so that none gets less than its own protocol."""
    given = {job.steps for _, job in jobs}
    if len(given) == 1 and None not in given:
        return jobs
    if len(given - {None}) > 1 or len({job.epochs for _, job in jobs}) > 1:
        raise problem("hold.steps", "the grid varies steps or epochs; say hold: {steps: free}", "equal")
    steps = [_resolved(job, read).steps for _, job in jobs]
    custom = [isinstance(job.recipe, Custom) for _, job in jobs]
    if any(own and n < max(steps) for own, n in zip(custom, steps, strict=True)):
        message = f"custom stages say their own steps, here {min(steps)} to {max(steps)}; say hold: {{steps: free}}"
        raise problem("hold.steps", message, "equal")
    longest = [(name, job.model_copy(update={"steps": max(steps)})) for name, job in jobs]
    return [old if own else new for old, new, own in zip(jobs, longest, custom, strict=True)]


def _hold_presentations(
    jobs: list[tuple[str, JobSpec]], read: Read, notes: list[str]
) -> list[tuple[str, JobSpec]]:
    """Mixing cells on the same recordings show them equally often; what cannot be held is said."""
    groups: dict[tuple, list[int]] = {}
    shown: list[float] = []
    for n, (name, job) in enumerate(jobs):
        resolved = _resolved(job, read)
        shown.append(presentations(resolved))
        heard = tuple(resolved.sources[s].sha256 for s in RECORDINGS if s in resolved.sources)
        held = isinstance(job.recipe, LimitedSpeech) and isinstance(job.recipe.speech_share, float | None)
        if held and 0 < len(heard) < len(resolved.sources):
            groups.setdefault((heard, job.seed), []).append(n)
        elif len(heard) == len(resolved.sources):
            notes.append(
                f"{name}: every step is speech, so at equal steps each recording is shown {shown[-1]:.1f} times"
            )
        elif shown[-1]:
            notes.append(f"{name}: recipe {job.recipe.name} is not held; recordings are shown {shown[-1]:.1f} times")
    notes[:] = dict.fromkeys(notes)
    for members in groups.values():
        most = max(shown[n] for n in members)
        if most - min(shown[n] for n in members) > 1e-6:
            for n in members:
                name, job = jobs[n]
                knobs = {"speech_presentations": most, "speech_share": None}
                jobs[n] = (name, job.model_copy(update={"recipe": job.recipe.model_copy(update=knobs)}))
    return jobs


def _exposure_matched(
    known: list[tuple[str, Resolved]], read: Read, cells: dict[str, Cell], notes: list[str]
) -> list[tuple[str, Resolved]]:
    """For every curriculum, direct mixing that shows the recordings as often in as many steps: what is left
    between the two is the order."""
    made: list[tuple[str, Resolved]] = []
    for name, late in known:
        job = late.spec
        if not (isinstance(job.recipe, LimitedSpeech) and job.recipe.scheme == "curriculum" and presentations(late)):
            continue
        knobs = {"scheme": "direct_mix", "speech_presentations": presentations(late), "speech_share": None}
        recipe = job.recipe.model_copy(update=knobs)
        job = job.model_copy(update={"steps": late.steps, "recipe": recipe})
        twin = _resolved(job, read)
        same = [other for other, run in known if _alike(run, twin)]
        if same:
            notes.append(f"{same[0]} is the exposure-matched control of {name}")
            continue
        title = f"direct_mix, exposure of {name}"
        cells.setdefault(title, Cell(title, {**cells[name].settings, "scheme": "direct_mix"}))
        made.append((title, twin))
    notes[:] = dict.fromkeys(notes)
    return made


def _alike(a: Resolved, b: Resolved) -> bool:
    """Whether two jobs differ in nothing but rounding of the mix: same stages, rows, seed and settings."""

    def mixes(job: Resolved) -> np.ndarray:
        """Shares over 100 slots of every stage, shape (stages, sources, slots)."""
        mixed: Any = [stage.mix for stage in job.stages]
        return np.array([[shares(mix.get(source, 0.0), 100) for source in sorted(job.sources)] for mix in mixed])

    def rest(job: Resolved) -> dict[str, Any]:
        spec = job.spec.model_dump(mode="json", exclude={"name", "tags", "recipe", "steps", "resources"})
        pins = {name: pin.sha256 for name, pin in job.sources.items()}
        return {"spec": spec, "pins": pins, "stages": [(s.steps, s.optimizer, s.trainable) for s in job.stages]}

    return rest(a) == rest(b) and np.allclose(mixes(a), mixes(b), rtol=0, atol=1e-9)


def _say_same(cells: dict[str, Cell], notes: list[str]) -> None:
    first: dict[str, str] = {}
    for cell in cells.values():
        key = " ".join(sorted(run.hash for run in cell.runs))
        if key in first:
            notes.append(f"{cell.name}: trains the same as {first[key]}, so once")
        first.setdefault(key, cell.name)
