"""Fitting the weights of one step's forecasts to the model, before the step is run.

At each step that forecasts, the weights of all its sites are fitted together, given all that
went before, by one step of the Gauss-Newton method:

    r(w) = output with weights w - output of the untransformed model, for the same inputs, as
           the scheduler sees them (guidance applied); or that with which the scheduler's next
           sample is a teacher's
    w    = w0 - (J'J + ridge)^-1 J' r(w0),  J = dr/dw by finite differences

Source: Nocedal and Wright 2006, "Numerical optimization", section 10.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.action import Action

from .scheduler_view import SchedulerView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dqar_fx.calibration.calibration import Floats
    from dqar_fx.plan.slot_state import ForecastWeights
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.position import Position

    from .teacher_states import TeacherStates

    WeightIndex = tuple[int, int]
    # column of a site, and place in its history

NUDGE = 0.02
"""By how much a weight is changed to see what it does."""
RIDGE = 1e-3
"""What holds weights where they are by default: a share of their mean squared effect."""
HALVINGS = 4
"""How often a fit that does more harm than good is taken back by half."""


@dataclass
class FittedWeights:
    """The weights that were fitted so far.

    Attributes:
        ridge: What holds weights where they are, as a share of their mean squared effect.
        by_step: Per step that forecasts, per site its weights; empty for other sites.
        view: What the scheduler sees of the denoiser's outputs.
        states: Where a teacher's samples are, as the aim; None for what the untransformed
            model gives.
    """

    ridge: float = RIDGE
    by_step: dict[int, ForecastWeights] = field(default_factory=dict)
    view: SchedulerView = field(default_factory=SchedulerView)
    states: TeacherStates | None = None

    def array(self, table: BranchTable) -> Floats:
        """The weights of a table's forecasts: float64 ``[steps, sites, history]``, else 0."""
        array = np.zeros((*table.actions.shape, table.history))
        for step, row in self.by_step.items():
            for site, weights in enumerate(row):
                array[step, site, : len(weights)] = weights
        array[table.actions != Action.FORECAST] = 0.0
        return array


class FittingProgram:
    """Runs a program, and fits the weights of each step that forecasts before it is run.

    Args:
        program: The program, in eager mode.
        fitted: What weights are added to; steps that it has are not fitted again.
    """

    def __init__(self, program: Program, fitted: FittedWeights) -> None:
        self.captured, self.roles = program.captured, program.roles
        self.table, self.ahead = program.table, program.ahead
        self._program, self._fitted = program, fitted

    def reset(self) -> None:
        """Forget all streams, but not the weights."""
        self._program.reset()

    def run(self, leaves: Sequence[Any], position: Position) -> list[torch.Tensor]:
        """Run one step with fitted weights; the denoiser's flat outputs."""
        step, program, by_step = position.step, self._program, self._fitted.by_step
        forecasts = (self.table.actions[step] == Action.FORECAST).any()
        if not forecasts or not program.can_rehearse(position):
            outputs = program.run(leaves, position)
            self._fitted.view.note(outputs)
            return outputs
        if step not in by_step:
            by_step[step] = self._fit(leaves, position)
        return program.run(leaves, position, by_step[step])

    def _fit(self, leaves: Sequence[Any], position: Position) -> ForecastWeights:
        """The weights with which a step comes nearest to the right one."""
        start, view = self._program.weigh(position), self._fitted.view
        right = self._find_right(leaves, position.step)
        if right is None:
            return start

        def error_of(weights: ForecastWeights) -> torch.Tensor:
            return view(self._program.rehearse(leaves, position, weights)) - right

        error = error_of(start)
        read = self.table.kept[position.step]
        indices = [
            (site, place)
            for site, row in enumerate(start)
            for place in range(min(len(row), len(read[site])))
        ]
        effects = torch.stack(
            [(error_of(add_changes(start, {i: NUDGE})) - error) / NUDGE for i in indices]
        )
        changes = solve(effects, error, self._fitted.ridge)
        for halving in range(HALVINGS):
            scaled = dict(zip(indices, (changes * 0.5**halving).tolist(), strict=True))
            weights = add_changes(start, scaled)
            if error_of(weights).norm() < error.norm():
                return weights
        return start

    def _find_right(self, leaves: Sequence[Any], step: int) -> torch.Tensor | None:
        """What the scheduler should see: float64, one dimension; None for anything."""
        view, states = self._fitted.view, self._fitted.states
        if states is None:
            return view(self.captured.gm(*leaves))
        if view.matrix is None:
            raise ScheduleError(
                f"step {step}: what the scheduler is given does not follow from one call of "
                "the denoiser, so that a teacher's sample cannot be its aim. Expected both "
                "halves of guidance in one call; or fit without teacher="
            )
        return states.aim(step)


def solve(effects: torch.Tensor, error: torch.Tensor, ridge: float = RIDGE) -> Floats:
    """Solve for the change of weights that makes an error least.

    Args:
        effects: float64 ``[weights, values]``: by how much the error changes if a weight grows
            by one.
        error: float64 ``[values]``.
        ridge: What holds weights where they are, as a share of their mean squared effect.

    Returns:
        float64 ``[weights]``.
    """
    normal = (effects @ effects.T).cpu().numpy()
    gradient = (effects @ error).cpu().numpy()
    damping = ridge * max(float(np.trace(normal)) / len(normal), np.finfo(np.float64).tiny)
    return np.asarray(-np.linalg.solve(normal + damping * np.eye(len(normal)), gradient))


def add_changes(
    weights: ForecastWeights, changes: Mapping[WeightIndex, float]
) -> ForecastWeights:
    """Add changes to some weights, which are told by column of the site and place."""
    return tuple(
        tuple(value + changes.get((site, place), 0.0) for place, value in enumerate(row))
        for site, row in enumerate(weights)
    )
