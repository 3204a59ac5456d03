"""Forecasts whose weights are fitted to the model, in the place of a polynomial's.

A forecast adds up what was kept, by weights that depend on the step alone. Polynomials take
them from the distances of steps. Here they are those with which the denoiser's output comes
nearest to what it should be: at each step that forecasts, the weights of all its sites
together, given all that went before, by one step of Gauss and Newton's method:

    r(w) = output with weights w - output of the untransformed model, for the same inputs, as
           the scheduler sees them (guidance applied)
    w    = w0 - (J'J + ridge)^-1 J' r(w0),  J = dr/dw by differences

Errors of sites that cancel in the output are left to cancel, and drift of earlier steps is
part of the inputs: fitting each site alone to what it should give does worse.

Source: Nocedal and Wright 2006, "Numerical optimization", section 10.3.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.builder.builder import Builder
from dqar_fx.calibration.calibrate import count_calls
from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.errors import ScheduleError
from dqar_fx.passes import FORMATS
from dqar_fx.program.compile_options import CompileOptions
from dqar_fx.schedule.action import Action
from dqar_fx.schedule.schedule import Schedule
from dqar_fx.schedule.written_out import WrittenActions

from .arguments import check_pipeline
from .trials import Job, run_attached
from .view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from dqar_fx.plan.slot_state import ForecastWeights
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.steps import Position

NUDGE = 0.02
"""By how much a weight is moved to see what it does."""
RIDGE = 1e-3
"""Share of the mean squared effect of a weight that holds all weights where they are."""
RIDGES = (RIDGE, 1.0)
"""Those that a search tries. The error of one step on other pictures does not tell which is
better: where pictures are fitted, the steps before are fitted to them, too."""
HALVINGS = 4
"""How often a fit that does more harm than good is taken back by half."""

Cell = tuple[int, int]
"""Column of a site, and place in its history."""


@dataclass(frozen=True)
class Fitted(WrittenActions):
    """Actions as another schedule has them, with weights that were fitted to a model."""

    fingerprint: Fingerprint | None = field(default=None, compare=False)
    """Of the model."""

    def refuse_other_model(self, model: nn.Module) -> None:
        """If the weights were fitted to another one."""
        if self.fingerprint is not None:
            self.fingerprint.refuse_other(model, "the fitted forecast")


def fit_forecasts(
    pipeline: Any,
    inputs: Sequence[Any],
    schedule: Schedule,
    *,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    ridge: float = RIDGE,
    **call: Any,
) -> Schedule:
    """Fit the weights of a schedule's forecasts to a model.

    Runs the pipeline once. A step that forecasts is evaluated once more for each weight:
    sites times kept values. All inputs are one batch.

    Args:
        pipeline: A diffusers pipeline with a ``transformer`` and a ``scheduler``; both are as
            before when this returns. Guidance is as the call says; of streams with calls of
            their own, the first one's weights are those of all.
        inputs: Prompts, or class labels: its first argument.
        schedule: For the whole trajectory; with forecasts.
        sites: As for ``transform``; by default those that the schedule is meant for.
        seed: Of the noise.
        ridge: What holds the weights where they are, as a share of the mean squared effect of
            a weight; above 0. A strong one (1) gains less on these pictures, and may gain
            more on others where computed steps are far between.
        **call: More arguments of the pipeline, such as ``guidance_scale``.

    Returns:
        The same actions, with weights: a schedule of the same cost, for ``transform``. It
        refuses other models.

    Raises:
        ScheduleError: Nothing is forecast, the schedule does not fit the pipeline, or the
            ridge is out of range.
        DqarError: The pipeline has no transformer or no scheduler.
    """
    check_pipeline(pipeline, inputs)
    if not 0 < ridge < np.inf:
        raise ScheduleError(f"ridge={ridge!r}: expected a number above 0, such as {RIDGE}")
    if sites is None:
        sites = "attention" if schedule.sites is None else schedule.sites
    calls = count_calls(pipeline.scheduler, schedule.num_steps)
    if calls != schedule.num_steps:
        raise ScheduleError(
            f"the schedule has {schedule.num_steps} steps, but the pipeline's scheduler makes "
            f"{calls} of as many. Give a schedule of {calls} steps"
        )
    job = Job(pipeline, tuple(inputs), seed, schedule.num_steps, len(inputs), call)
    wanted = sites if isinstance(sites, str) else tuple(sites)
    return fit(job, schedule, wanted, ridge)


def fit(
    job: Job, schedule: Schedule, sites: str | tuple[str, ...], ridge: float = RIDGE
) -> Schedule:
    """Fit a schedule's weights in a job whose inputs are one batch."""
    model, fits = job.pipeline.transformer, Fits(ridge)
    builder = FitBuilder(Builder(schedule, sites, "output", FORMATS["same"]), fits)
    denoiser = Denoiser(model, builder, CompileOptions.of(None))
    scheduler = copy.deepcopy(job.pipeline.scheduler)
    scheduler.step = fits.view.watch(scheduler.step)
    run_attached(job, denoiser, scheduler)
    table = denoiser.table
    if not (table.actions == Action.FORECAST).any():
        raise ScheduleError(
            "the schedule forecasts nothing, so that there are no weights to fit: expected "
            "one with forecasts, such as Schedule.interval(50, every=3).forecast(2)"
        )
    return with_weights(table, fits.array(table), sites, Fingerprint.of(model))


def with_weights(
    table: BranchTable,
    weights: NDArray[np.float64],
    sites: str | tuple[str, ...],
    fingerprint: Fingerprint,
) -> Schedule:
    """A table's actions with weights ``[steps, sites, points]``, as a schedule."""
    steps = range(table.num_steps)
    reasons = [[reason_of(table, t, s) for s in range(len(table.sites))] for t in steps]
    rule = Fitted(
        letters=tuple(tuple(action.letter for action in table.row(step)) for step in steps),
        strict=True,
        orders=tuple(map(tuple, table.orders.tolist())),
        weights=tuple(tuple(map(tuple, row)) for row in weights.tolist()),
        reasons=tuple(map(tuple, reasons)),
        fingerprint=fingerprint,
    )
    return Schedule(table.num_steps, rule, table.max_age, method=table.method, sites=sites)


def reason_of(table: BranchTable, step: int, site: int) -> str:
    """Why a cell of a schedule's table is what it is."""
    return "as given" if table.reason is None else table.reason(table, step, site)


@dataclass
class Fits:
    """What was found.

    Attributes:
        ridge: What holds the weights where they are.
        weights: Per step that forecasts, per site its weights; empty for other sites.
        view: What the scheduler sees of the denoiser's outputs.
    """

    ridge: float = RIDGE
    weights: dict[int, ForecastWeights] = field(default_factory=dict)
    view: View = field(default_factory=View)

    def array(self, table: BranchTable) -> NDArray[np.float64]:
        """``[steps, sites, points]``."""
        found = np.zeros((*table.actions.shape, table.history))
        for step, row in self.weights.items():
            for site, weights in enumerate(row):
                found[step, site, : len(weights)] = weights
        found[table.actions != Action.FORECAST] = 0.0
        return found


@dataclass(frozen=True)
class FitBuilder:
    """Builds a fitter for each input signature of a denoiser."""

    builder: Builder
    fits: Fits

    def with_schedule(self, schedule: Schedule) -> FitBuilder:
        """The same for another schedule."""
        return replace(self, builder=self.builder.with_schedule(schedule))

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CompileOptions,
    ) -> Any:
        """The fitter, which a denoiser calls as it calls a program."""
        return Fitter(self.builder(model, args, kwargs, options), self.fits)


class Fitter:
    """Runs a program, and fits the weights of each step that forecasts before it is run.

    Args:
        program: Eager.
        fits: Where to write; steps that stand there already are not fitted again.
    """

    def __init__(self, program: Program, fits: Fits) -> None:
        self.captured, self.roles = program.captured, program.roles
        self.table, self._program, self._fits = program.table, program, fits
        self.ahead = program.ahead

    def reset(self) -> None:
        """Forget the steps before."""
        self._program.reset()

    def run(self, leaves: Sequence[Any], position: Position) -> list[torch.Tensor]:
        """One step, with the weights that were fitted."""
        step, program = position.step, self._program
        forecasts = (self.table.actions[step] == Action.FORECAST).any()
        if not forecasts or not program.can_rehearse(position):
            outputs = program.run(leaves, position)
            self._fits.view.note(outputs)
            return outputs
        if step not in self._fits.weights:
            self._fits.weights[step] = self._fit(leaves, position)
        return program.run(leaves, position, self._fits.weights[step])

    def _fit(self, leaves: Sequence[Any], position: Position) -> ForecastWeights:
        """The weights with which a step comes nearest to the untransformed one."""
        start, view = self._program.weigh(position), self._fits.view
        right = view(self.captured.gm(*leaves))

        def error_of(weights: ForecastWeights) -> torch.Tensor:
            return view(self._program.rehearse(leaves, position, weights)) - right

        error = error_of(start)
        read = self.table.kept[position.step]
        cells = [(s, place) for s, row in enumerate(start) for place in range(len(row))]
        cells = [(s, place) for s, place in cells if place < len(read[s])]
        effects = torch.stack(
            [(error_of(moved(start, {cell: NUDGE})) - error) / NUDGE for cell in cells]
        )
        change = solve(effects, error, self._fits.ridge)
        for halving in range(HALVINGS):
            steps = dict(zip(cells, (change * 0.5**halving).tolist(), strict=True))
            tried = moved(start, steps)
            if error_of(tried).norm() < error.norm():
                return tried
        return start


def solve(
    effects: torch.Tensor, error: torch.Tensor, ridge: float = RIDGE
) -> NDArray[np.float64]:
    """The change of weights that makes an error least.

    Args:
        effects: float64 ``[weights, values]``: what a weight of one more does to the error.
        error: float64 ``[values]``.
        ridge: What holds them, as a share of the mean squared effect.
    """
    normal = (effects @ effects.T).cpu().numpy()
    pull = (effects @ error).cpu().numpy()
    held = ridge * max(float(np.trace(normal)) / len(normal), np.finfo(np.float64).tiny)
    return np.asarray(-np.linalg.solve(normal + held * np.eye(len(normal)), pull))


def moved(weights: ForecastWeights, by: dict[Cell, float]) -> ForecastWeights:
    """Weights with some of them changed."""
    return tuple(
        tuple(value + by.get((site, place), 0.0) for place, value in enumerate(row))
        for site, row in enumerate(weights)
    )
