"""Limited speech beside abundant text (Choi et al., arXiv 2509.15389).

Section 3 of the paper: *text-only* (encoder and adapter frozen), *direct mixing* of all text with the share of
the recordings that exist, and a *curriculum* of two text-only epochs and one mixed epoch whose learning rate
restarts lower (3e-6 after 5e-6, warm-up .02 after .04).

Departures, each a field or named here:
- LoRA at its own rate by default instead of full tuning; the ratios between the stages' rates are the paper's.
- The abundant side may be synthetic speech (`abundant: synthetic`), for a language that the base cannot read.
- `speech_only` and `synthetic_only` are added: the rows that a comparison needs beside the paper's three.
- How often the recordings are shown is said outright (`speech_presentations`), because a first trial found that
  exposure explained what looked like the merit of an order. Order, exposure and the restart of the learning rate
  (`restart`) are three factors, each of which can be changed alone.
- What learns in the mixed steps is the job's `tuning` and the knob `trains`: one reading of the paper trains all of the
  model there, a re-implementation the language model alone.

Across languages (section 4 of the paper) all sentences, of the target and of the languages that lend theirs, are the
abundant side, and all recordings the scarce one; within a side every row is shown equally often.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.fields import Spec, default, problem
from trainer.stage import RECORDINGS, TEXTS, AnyCurve, AnyShare, Optimizer, Rest, Stage, Trainable, hears, mean
from trainer.strategies.budget import Budget, need

Pool = dict[str, int]
"""Rows of the sources of one side."""
Mix = dict[Any, Any]
"""Shares by source."""
Scheme = Literal["text_only", "synthetic_only", "speech_only", "direct_mix", "curriculum"]


class LimitedSpeech(Spec):
    """Much labelled text (or synthetic speech), few labelled recordings."""

    paper: ClassVar[str] = "Exploring Fine-Tuning of LALMs for SLU under Limited Speech Data (arXiv 2509.15389)"
    name: Literal["limited_speech"] = "limited_speech"
    """The recipe's name."""
    scheme: Scheme = "direct_mix"
    """Which of the paper's schemes; `speech_only` and `synthetic_only` are controls."""
    abundant: Literal["auto", "text", "synthetic"] = "auto"
    """The abundant side: `text`, `synthetic`, or `auto` (text where `data` gives it, else synthetic)."""
    speech_presentations: Literal["once", "per_epoch"] | float | None = None
    """How often each recording is shown over the whole job: `once`, `per_epoch` (as often as an abundant row)
    or a number. Default `once` (arXiv 2509.15389: "the total amount of speech is the same" in direct mixing and
    curriculum). Not together with `speech_share`."""
    speech_share: AnyShare | None = None
    """Share of recordings among the examples of the mixed steps, instead of `speech_presentations`; or a curve of it
    over them."""
    late_share: float = Field(default=1 / 3, gt=0, lt=1)
    """Curriculum: share of the steps in the mixed last stage (paper: the last of 3 epochs)."""
    late_lr_ratio: float = Field(default=0.6, gt=0)
    """Curriculum: peak rate of the last stage over that of the first (paper: 3e-6 / 5e-6)."""
    late_warmup_ratio: float = Field(default=0.5, gt=0)
    """Curriculum: warm-up ratio of the last stage over that of the first (paper: .02 / .04)."""
    restart: Literal["auto", "on", "off"] = "auto"
    """Whether the learning rate restarts for the last `late_share` of the steps, by the two ratios above; `auto`: in
    the curriculum alone (the paper). `off` in the curriculum: one schedule over both stages."""
    trains: list[Literal["lm", "projector", "encoder"]] | None = Field(default=None, min_length=1)
    """Parts that learn in the stages that hear, as far as `tuning` opens them; default: all of them. From text alone
    only the language model learns."""

    @model_validator(mode="after")
    def _one_word_for_the_mix(self) -> "LimitedSpeech":
        if self.speech_presentations is not None and self.speech_share is not None:
            raise ValueError(
                "speech_presentations and speech_share both say how often recordings are shown; keep one"
            )
        if isinstance(self.speech_presentations, float) and self.speech_presentations <= 0:
            raise ValueError(
                f"speech_presentations must be above 0, not {self.speech_presentations:g}; for none use text_only"
            )
        if self.scheme in ("text_only", "synthetic_only"):
            for knob in ("speech_presentations", "speech_share"):
                if getattr(self, knob) is not None:
                    raise ValueError(f"scheme {self.scheme} shows no recordings; leave {knob} out")
        if self.scheme == "text_only" and self.abundant == "synthetic":
            raise ValueError(
                "scheme text_only with abundant: synthetic: say synthetic_only, or abundant: text"
            )
        if self.scheme == "synthetic_only" and self.abundant == "text":
            raise ValueError("scheme synthetic_only with abundant: text: say text_only, or abundant: synthetic")
        # A stored job says every field, so a ratio that is at its default has not been said.
        said = [name for name in ("late_lr_ratio", "late_warmup_ratio") if getattr(self, name) != default(self, name)]
        if self.restart == "off" and said:
            raise ValueError(f"restart: off keeps one schedule; leave {' and '.join(said)} out")
        return self

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """The scheme as ordered stages. `rows`: usable rows per source; recordings of which none may be used (0) leave
        of direct mixing and curriculum what they do with the rest."""
        few = _pool(rows, RECORDINGS)
        if self.scheme == "speech_only":
            return self._speech_only(few or {"speech": need(rows, "speech", "scheme speech_only")}, budget)
        kind = self._abundant(rows)
        many = _pool(rows, TEXTS if kind == "text" else ("synthetic",))
        many = many or {kind: need(rows, kind, f"scheme {self.scheme}")}
        none = not few and any(source in rows for source in RECORDINGS)
        if none or self.scheme in ("text_only", "synthetic_only"):
            steps = budget.steps_for(budget.epochs * sum(many.values()))
            return self._parts(kind, steps, _spread(many), _spread(many), budget, single=f"{kind}_only")
        few = few or {"speech": need(rows, "speech", f"scheme {self.scheme}")}
        return self._mixed(kind, many, few, budget)

    def _abundant(self, rows: Mapping[str, int]) -> str:
        if self.scheme in ("text_only", "synthetic_only"):
            return self.scheme.removesuffix("_only")
        if self.abundant != "auto":
            return self.abundant
        return "text" if _pool(rows, TEXTS) else "synthetic"

    def _restarts(self) -> bool:
        return self.restart == "on" or (self.restart == "auto" and self.scheme == "curriculum")

    def _late(self, steps: int) -> int:
        """Steps of the last part of two."""
        if steps < 2:
            what = "a curriculum" if self.scheme == "curriculum" else "a restart of the learning rate"
            field = "recipe.scheme" if self.scheme == "curriculum" else "recipe.restart"
            message = f"{what} needs at least 2 steps; raise steps or epochs"
            raise problem(field, message, self.scheme if self.scheme == "curriculum" else self.restart)
        return min(max(1, round(steps * self.late_share)), steps - 1)

    def _parts(self, kind: str, steps: int, first: Mix, last: Mix, budget: Budget, *, single: str) -> list[Stage]:
        """The stages of a scheme that shows `first` and, in its last part, `last`: `single` where nothing changes in
        between, else two, named after `kind`."""
        optimizer = budget.optimizer
        if first == last and not self._restarts():
            return [self._stage(single, steps, first, budget, optimizer)]
        late = self._late(steps)
        before, after = {"schedule_part": (0, steps)}, {"schedule_part": (steps - late, steps)}
        if self._restarts():
            before, after = {}, {
                "peak_lr": optimizer.peak_lr * self.late_lr_ratio,
                "warmup_ratio": optimizer.warmup_ratio * self.late_warmup_ratio,
            }  # fmt: skip
        names = (kind, kind if first == last else "mixed")
        return [
            self._stage(f"{names[0]}_first", steps - late, first, budget, optimizer.model_copy(update=before)),
            self._stage(f"{names[1]}_last", late, last, budget, optimizer.model_copy(update=after)),
        ]

    def _stage(self, name: str, steps: int, mix: Mix, budget: Budget, optimizer: Optimizer) -> Stage:
        trainable = budget.trainable(hears=hears(mix))
        if self.trains is not None and hears(mix):
            trainable = Trainable(**{part: on and part in self.trains for part, on in trainable})
        return Stage(name=name, steps=steps, mix=mix, trainable=trainable, optimizer=optimizer)

    def _speech_only(self, pool: Pool, budget: Budget) -> list[Stage]:
        if self.speech_share is not None:
            raise problem("recipe.speech_share", "scheme speech_only shows nothing but recordings; leave it out")
        times, few = self.speech_presentations, sum(pool.values())
        shown = few * (budget.epochs if times in (None, "per_epoch") else 1 if times == "once" else float(times))
        batch = budget.global_batch
        if times is not None and budget.steps and abs(budget.steps * batch - shown) >= batch:
            raise problem(
                "recipe.speech_presentations",
                f"scheme speech_only shows each of {few} recordings {shown / few:g} times in "
                f"{math.ceil(shown / batch)} steps, but steps is {budget.steps}; keep one of the two",
                times,
            )
        mix = _spread(pool)
        return self._parts("speech", budget.steps_for(shown), mix, mix, budget, single="speech_only")

    def _mixed(self, kind: str, abundant: Pool, scarce: Pool, budget: Budget) -> list[Stage]:
        """Direct mixing and curriculum at the same number of steps and of speech presentations."""
        batch, many, few = budget.global_batch, sum(abundant.values()), sum(scarce.values())
        rest: float | None = None
        if self.speech_share is not None:
            share = self.speech_share
            if not 0 < (usual := mean(share)) < 1:
                raise problem("recipe.speech_share", "mixing needs a share between 0 and 1", usual)
            if len(abundant) + len(scarce) > 2 and not isinstance(share, float | int):
                message = "a curve is for one source of recordings beside one other; write custom stages"
                raise problem("recipe.speech_share", message, share.kind)
            steps = budget.steps_for(budget.epochs * many / (1 - usual))
        else:
            times = self.speech_presentations
            wanted = budget.epochs * few if times == "per_epoch" else few * (1 if times in (None, "once") else times)
            steps = budget.steps_for(budget.epochs * many + wanted)
            late = self._late(steps) if self.scheme == "curriculum" else steps
            # per_epoch: in proportion to the rows, which is exactly what plain fine-tuning does.
            overall = few / (many + few) if times == "per_epoch" else wanted / (steps * batch)
            shown = overall * steps * batch
            share = overall if self.scheme == "direct_mix" else overall * steps / late
            if share > 1:
                raise problem(
                    "recipe.speech_presentations",
                    f"{shown:.0f} presentations of {few} recordings do not fit into the {late} mixed steps of "
                    f"{batch} examples; show them at most {late * batch / few:.1f} times"
                    + (", or raise recipe.late_share" if self.scheme == "curriculum" else ", or raise steps"),
                    self.speech_presentations,
                )
            if self.scheme == "direct_mix" and times == "per_epoch":
                rest = many / (many + few)
        mixed = _mix(abundant, scarce, share, rest)
        if self.scheme == "direct_mix":
            return self._parts("mixed", steps, mixed, mixed, budget, single="direct_mix")
        if isinstance(share, float) and share >= 1:
            mixed = _spread(scarce)
        return self._parts(kind, steps, _spread(abundant), mixed, budget, single="curriculum")


def _pool(rows: Mapping[str, int], sources: tuple[str, ...]) -> Pool:
    return {source: rows[source] for source in sources if rows.get(source)}


def _spread(pool: Pool, share: float = 1.0) -> Mix:
    """A share over the sources of a side, in proportion to their rows."""
    whole = sum(pool.values())
    return {source: share * (rows / whole) for source, rows in pool.items()}


def _mix(abundant: Pool, scarce: Pool, share: float | AnyCurve, rest: float | None) -> Mix:
    """Both sides, recordings at `share`, the others at `rest` (None: what is left)."""
    if isinstance(share, float):
        return {**_spread(abundant, 1 - share if rest is None else rest), **_spread(scarce, share)}
    return {next(iter(abundant)): Rest(kind="rest", of=[share]), next(iter(scarce)): share}
