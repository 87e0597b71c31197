"""The corpus of a job: its sources' usable rows, its test rows and its tasks, read from the data sets it names."""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.fields import UnfitDataError, problem
from trainer.leaks import plain
from trainer.manifest import ManifestError, Utterance, locate, manifests_in
from trainer.source_rows import (
    Fields,
    Roots,
    SourceRows,
    need_audio,
    need_text,
    no_leak,
    read_rows,
    together,
)  # fmt: skip
from trainer.spec import Data, JobSpec, Task, builtin_tasks, read_task
from trainer.stage import field_of
from trainer.start import Start, find_start
from trainer.subset import first, subset

HEARD = ("speech", "synthetic", "source_speech")
"""Sources that the hearing check may listen to, the first there is."""


@dataclass(frozen=True)
class Corpus:
    """All that a job reads."""

    sources: dict[str, SourceRows]
    test: SourceRows | None
    tasks: dict[str, Task]
    dev: SourceRows | None = None
    """What checkpoints are scored on."""
    guards: tuple["Guarded", ...] = ()
    """What is scored before and after training."""
    pools: tuple[SourceRows, ...] = ()
    """What demonstrations come from where `evaluate.demos.from` says so: rows of the test's tasks."""

    start: Start | None = None
    """The weights that training starts from, where these are not the base alone."""

    def shown(self) -> list[Utterance]:
        """The rows that demonstrations of the test are drawn from."""
        pools = self.pools or [s for name, s in self.sources.items() if name == self.demonstrators()]
        return [row for pool in pools for row in pool.rows]

    def demonstrators(self) -> str | None:
        """The source that demonstrations are drawn from: the first that has transcripts with labels."""
        shows = (name for name, s in self.sources.items() if any(u.text and u.label is not None for u in s.rows))
        return next(shows, None)

    def task_rows(self, shows: Callable[[str], bool] = lambda task: True) -> dict[str, dict[str, int]]:
        """Usable rows by task, in the job's order, and source; `shows`: of which tasks."""
        found = {name: Counter(u.task for u in s.rows) for name, s in self.sources.items()}
        every = {task: {name: n[task] for name, n in found.items() if n[task]} for task in self.tasks if shows(task)}
        return {task: rows for task, rows in every.items() if rows}

    def heard(self) -> str | None:
        """The source that the hearing check listens to."""
        return next((name for name in HEARD if name in self.sources and self.sources[name].rows), None)

    def counts(self) -> dict[str, int]:
        """Usable rows per source."""
        return {name: len(s.rows) for name, s in self.sources.items()}


@dataclass(frozen=True)
class Guarded:
    """A further test set and its own tasks."""

    source: SourceRows
    tasks: dict[str, Task]


class Reader:
    """Reads corpora for many jobs of one process, each data set once. `jobs`: as of `find_start`."""

    def __init__(self, roots: Roots = (".",), jobs: str | None = None):
        self.roots, self.jobs, self._read = roots, jobs, {}

    def __call__(self, spec: JobSpec) -> Corpus:
        given = [t if isinstance(t, str) else t.model_dump_json() for t in spec.tasks or []]
        evaluate = spec.evaluate
        also = f"{evaluate.guards} {evaluate.demos.from_ if evaluate.demos.most else []}"
        key = f"{spec.data!r} {spec.source!r} {spec.language} {given} "
        key += f"{evaluate.on} {evaluate.dev} {evaluate.select} {also} {spec.init_from}"
        if key not in self._read:
            self._read[key] = read_corpus(spec, self.roots, self.jobs)
        return self._read[key]


def read_corpus(spec: JobSpec, roots: Roots = (".",), jobs: str | None = None) -> Corpus:
    """Read what the spec names. SpecError names the field whose data set is missing, empty or unfit. `jobs`: as of
    `find_start`."""
    data = spec.data
    start = find_start(spec.init_from, roots, jobs) if spec.init_from else None
    sources: dict[str, SourceRows] = {}
    if data.corpus:
        sources |= _both("data.corpus", read_rows("data.corpus", data.corpus, roots, "train"), data)
    if data.text:
        found = read_rows("data.text", data.text, roots, "train")
        need_text("data.text", found, data.text)
        sources["text"] = _sentences("data.text", found, data)
    if data.synthetic:
        found = read_rows("data.synthetic", data.synthetic, roots, "train")
        need_audio("data.synthetic", found, data.synthetic)
        sources["synthetic"] = found
    if data.speech:
        found = read_rows("data.speech", data.speech, roots, "train")
        need_audio("data.speech", found, data.speech)
        sources["speech"] = _recordings("data.speech", found, data)
        if "text" in sources and data.pairing == "replace":
            words = {_words(u) for u in sources["speech"].rows if u.text}
            sources["text"] = _without(sources["text"], lambda u: _words(u) in words)
    test = _test(spec, roots)
    if data.extra_text:
        sources["extra_text"] = _extra(spec, sources.get("text"), test, roots)
    if spec.source:
        sources |= _lent(spec, roots)
    dev = _dev(spec, roots)
    held = [found for found in (test, dev) if found]
    pools = _pools(spec, roots, test, dev)
    tasks = _tasks(spec, [*sources.values(), *held, *pools])
    trained = [(field_of(name), source) for name, source in sources.items()]
    no_leak(trained, test, "test")
    no_leak([*trained, *([("evaluate.on", test)] if test else [])], dev, "dev")
    guards = tuple(_guarded(n, ref, roots, trained) for n, ref in enumerate(spec.evaluate.guards))
    return Corpus(sources, test, tasks, dev, guards, pools, start)


def _sentences(field: str, found: SourceRows, data: Data) -> SourceRows:
    """The sentences that may be used."""
    texts = [u for u in found.rows if u.text]
    count = len(texts) if data.text_rows is None else data.text_rows
    kept = first(texts, count, data.subset_seed, "data.text_rows", "sentences")
    return SourceRows(found.ref, kept, len(texts), found.folder)


def _recordings(field: str, found: SourceRows, data: Data) -> SourceRows:
    heard = [u for u in found.rows if u.audio]
    return SourceRows(found.ref, subset(heard, data, field), len(heard), found.folder)


def _both(field: str, whole: SourceRows, data: Data) -> dict[str, SourceRows]:
    """Sentences and recordings of a corpus that may be used, as far as it has any."""
    found = {"text": _sentences(field, whole, data)}
    among = replace(whole, rows=found["text"].rows) if data.text_rows else whole
    found["speech"] = replace(_recordings(field, among, data), available=sum(u.audio is not None for u in whole.rows))
    if data.pairing == "replace":
        heard = {u.id for u in found["speech"].rows}
        found["text"] = _without(found["text"], lambda u: u.id in heard)
    return {name: rows for name, rows in found.items() if rows.available}


def _without(texts: SourceRows, heard: Callable[[Utterance], bool]) -> SourceRows:
    """The sentences in whose place no recording stands."""
    left = [u for u in texts.rows if not heard(u)]
    if texts.rows and not left:
        message = f"recordings stand in the place of all {len(texts.rows)} sentences; use add, or fewer recordings"
        raise problem("data.pairing", message, "replace")
    return replace(texts, rows=left)


def _extra(spec: JobSpec, texts: SourceRows | None, test: SourceRows | None, roots: Roots) -> SourceRows:
    """Further sentences of the target language, without what the test says and what is trained on anyway."""
    field, ref = "data.extra_text", spec.data.extra_text or ""
    found = read_rows(field, ref, roots, "train")
    need_text(field, found, ref)
    _only_in([spec.language], field, found)
    known = {_words(u) for rows in (texts, test) if rows for u in rows.rows if u.text}
    kept = [u for u in found.rows if _words(u) not in known]
    if not kept:
        raise problem(field, "the test or the text has every one of its sentences; leave it out", ref, UnfitDataError)
    return replace(found, rows=kept)


def _lent(spec: JobSpec, roots: Roots) -> dict[str, SourceRows]:
    """Sentences and recordings of the source languages."""
    assert spec.source is not None
    lent: dict[str, list[SourceRows]] = {}
    how = {"speech_fraction": spec.source.speech_fraction, **spec.data.model_dump(include={"subset_seed", "pairing"})}
    named: set[str] = set()
    for ref in spec.source.references:
        whole = read_rows("source.data", ref, roots, "train")
        if whole.ref in named:
            raise problem("source.data", f"names {whole.ref} twice, whose rows would count double; take one out", ref)
        named.add(whole.ref)
        _only_in(spec.source.languages, "source.language", whole)
        for name, rows in _both("source.data", whole, Data(corpus=ref, **how)).items():
            lent.setdefault(f"source_{name}", []).append(rows)
    return {name: together(parts) for name, parts in lent.items()}


def _words(row: Utterance) -> tuple[str, str]:
    """Language without region, and words, whatever case and punctuation."""
    language, words = plain(row)
    return language.split("-")[0], words


def _only_in(languages: Sequence[str], field: str, found: SourceRows) -> None:
    """UnfitDataError for rows of other languages (regions do not matter)."""
    known = {tag.split("-")[0] for tag in languages}
    if other := next((u for u in found.rows if u.language.split("-")[0] not in known), None):
        message = f"row {other.id} of {found.ref} is in {other.language}, not in {' or '.join(languages)}; take it out"
        raise problem(field, message, kind=UnfitDataError)


def _test(spec: JobSpec, roots: Roots) -> SourceRows | None:
    """The rows that the job is scored on; by default the speech data's test split, else its dev split."""
    if isinstance(spec.evaluate.on, list):
        return _one_test([read_rows("evaluate.on", ref, roots, "test") for ref in spec.evaluate.on])
    if spec.evaluate.on:
        return read_rows("evaluate.on", spec.evaluate.on, roots, "test")
    base = spec.data.corpus or spec.data.speech
    if base is None:
        raise problem("evaluate.on", "names no test set, and there is no speech data with one; give evaluate.on")
    try:
        where = locate(base, roots)
    except ManifestError as error:
        raise problem("data.speech", str(error), base, UnfitDataError) from None
    for split in ("test", "dev"):
        if split in manifests_in(where.folder) or "manifest" in manifests_in(where.folder):
            try:
                return read_rows("evaluate.on", f"{where.words}:{split}", roots, None)
            except ValueError:
                continue
    raise problem("evaluate.on", f"{base} has neither a test nor a dev split; give evaluate.on")


def _one_test(parts: list[SourceRows]) -> SourceRows:
    """Several test sets as one. Predictions are told apart by the utterance's id, so no id may stand twice."""
    if not parts:
        raise problem("evaluate.on", "names no test set; name one, or leave it out")
    seen: dict[str, int] = {}
    for n, part in enumerate(parts):
        for row in part.rows:
            if (other := seen.setdefault(row.id, n)) != n:
                where = f"{parts[other].ref} and in {part.ref}"
                message = f"utterance {row.id} is in {where}; make ids unique, for example by the language"
                raise problem("evaluate.on", message, kind=UnfitDataError)
    return together(parts)


def _dev(spec: JobSpec, roots: Roots) -> SourceRows | None:
    """The rows that checkpoints are scored on; where none are named but a choice is wanted, the speech data's."""
    if spec.evaluate.dev or spec.evaluate.select == "last":
        return read_rows("evaluate.dev", spec.evaluate.dev, roots, "dev") if spec.evaluate.dev else None
    base = spec.data.corpus or spec.data.speech
    if base is not None:
        with contextlib.suppress(ManifestError):
            where = locate(base, roots)
            if "dev" in manifests_in(where.folder) or "manifest" in manifests_in(where.folder):
                return read_rows("evaluate.dev", f"{where.words}:dev", roots, None)
    message = f"chooses on a dev set, and {base or 'the job without speech data'} has none; give evaluate.dev"
    raise problem("evaluate.select", message, spec.evaluate.select)


def _pools(
    spec: JobSpec, roots: Roots, test: SourceRows | None, dev: SourceRows | None
) -> tuple[SourceRows, ...]:
    """The rows of `evaluate.demos.from` that name a task of the test, none of them tested."""
    demos, found = spec.evaluate.demos, []
    tested = {u.task for u in test.rows} if test else set()
    for n, ref in enumerate(demos.from_ if demos.most else []):
        field = f"evaluate.demos.from[{n}]"
        whole = read_rows(field, ref, roots, "train")
        pool = replace(whole, rows=[u for u in whole.rows if u.task in tested])
        if not pool.rows:
            has = ", ".join(sorted({u.task for u in whole.rows}))
            raise problem(field, f"has rows of {has}, none of the test's {', '.join(sorted(tested))}", ref)
        if not any(u.text and u.label is not None for u in pool.rows):
            message = "has no row with transcript and label, and demonstrations are shown as text"
            raise problem(field, message, ref, UnfitDataError)
        no_leak([(field, pool)], test, "test")
        no_leak([(field, pool)], dev, "dev")
        found.append(pool)
    return tuple(found)


def _guarded(n: int, ref: str, roots: Roots, trained: Fields) -> Guarded:
    field = f"evaluate.guards[{n}]"
    found = read_rows(field, ref, roots, "test")
    known = tasks_of(ref, roots)
    if missing := sorted({u.task for u in found.rows} - set(known)):
        message = f"its rows name the task '{missing[0]}', which is not defined; put a task.yaml beside the manifest"
        raise problem(field, message, ref)
    _own_choices(found, known)
    no_leak(trained, found, "guard")
    return Guarded(found, {u.task: known[u.task] for u in found.rows})


def tasks_of(ref: str, roots: Roots = (".",)) -> dict[str, Task]:
    """The tasks that a data set's rows may name: built in, and its own task.yaml."""
    known = builtin_tasks()
    path = locate(ref, roots).folder / "task.yaml"
    if path.is_file():
        task = read_task(path)
        known[task.name] = task
    return known


def _tasks(spec: JobSpec, read: list[SourceRows]) -> dict[str, Task]:
    """The tasks of all rows: as given in the spec, else in the data sets' task.yaml, else built in."""
    known, own = builtin_tasks(), {}
    for source in (part for found in read for part in found.each()):
        path = source.folder / "task.yaml"
        if path.is_file():
            task = read_task(path)
            other, said = own.setdefault(task.name, (source.ref, task))
            if said != task and not any(isinstance(t, Task) and t.name == task.name for t in spec.tasks or []):
                message = f"{other} and {source.ref} say different things of the task '{task.name}'; write it out here"
                raise problem("tasks", message, task.name)
            known[task.name] = task
    given: dict[str, Task] = {}
    for n, item in enumerate(spec.tasks or []):
        task = known.get(item) if isinstance(item, str) else item
        if task is None:
            raise problem(f"tasks[{n}]", f"no such task; known: {', '.join(sorted(known))}", item)
        given[task.name] = task
    wanted = {u.task for source in read for u in source.rows}
    tasks = given or {name: known[name] for name in sorted(wanted) if name in known}
    if missing := sorted(wanted - set(tasks)):
        raise problem(
            "tasks",
            f"rows name the task '{missing[0]}', which is not defined; write it out in tasks, or put a task.yaml "
            f"beside the manifest; known: {', '.join(sorted(tasks) or sorted(known))}",
        )
    for source in read:
        _own_choices(source, tasks)
    return {name: tasks[name] for name in tasks if name in wanted}


def _own_choices(found: SourceRows, tasks: dict[str, Task]) -> None:
    """UnfitDataError for a row with choices of its own whose task takes none, or without any where it asks for one."""
    asking = {name for name, task in tasks.items() if task.answer == "choice"}
    odd = next((u for u in found.rows if (u.task in asking) != (u.choices is not None)), None)
    if odd is None:
        return
    if odd.choices is None:
        message = f"row {odd.id} of {found.ref} has no choices, of which it asks for one; list them"
    else:
        message = f"row {odd.id} of {found.ref} has choices, which only choice takes; leave them out, or use choice"
    more = f"{message} (`attune validate {found.ref}` names every such row)"
    raise problem(f"tasks.{odd.task}.answer", more, tasks[odd.task].answer, UnfitDataError)
