"""Observing a pipeline's run: every step is computed as the model does, and its sites shown.

The denoiser stands where the model stood. For each input signature it has a `SiteObserver`,
which takes the place of a program: what it runs is the captured graph with more outputs. What
these are, and what is measured of them, is up to its subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from dqar_fx.capture.adapters import Bound, ModelInputs
from dqar_fx.capture.inputs import Roles, signature_of
from dqar_fx.capture.scopes import without_autocast
from dqar_fx.conditioning.conditioning import AheadPolicy
from dqar_fx.denoiser.step_denoiser import StepDenoiser
from dqar_fx.errors import DqarError
from dqar_fx.passes.support.collection import no_collection
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.program.specialised import SpecialisedPrograms
from dqar_fx.schedule.schedule import Schedule

from .site_reuse import SiteReuse, prepare_sites, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import torch
    from torch import nn

    from dqar_fx.capture.capture import Capture
    from dqar_fx.denoiser.step_denoiser import StepProgram
    from dqar_fx.schedule.table import BranchTable
    from dqar_fx.steps.position import Position

    from .site_reuse import TensorSequence

    StepProgramBuilder = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], StepProgram]


class ObservedDenoiser(StepDenoiser):
    """A denoiser whose steps are run by what observes them.

    Args:
        model: The original; it is not modified.
        build: Gives what runs the steps, from a fork of the model and the arguments of a call.

    Attributes:
        programs: What runs the steps, by input signature and values read on the host.
    """

    programs: dict[Hashable, SpecialisedPrograms[StepProgram]]

    def __init__(self, model: nn.Module, build: StepProgramBuilder) -> None:
        super().__init__(model)
        self._build = build
        self.programs = {}
        self._stamp = object()

    @property
    def table(self) -> BranchTable:
        """The branch table of the input signature that was captured last.

        Raises:
            DqarError: The pipeline has not called the denoiser.
        """
        if not self.programs:
            raise DqarError("the pipeline has never called its transformer")
        return next(iter(list(self.programs.values())[-1])).table

    def _find_program(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> StepProgram:
        key = self._model_state.number, signature_of(leaves, spec)
        if key not in self.programs:
            self.programs[key] = SpecialisedPrograms(self._residence.bring_back)
        make = partial(self._capture, leaves, spec)
        found = self.programs[key].find_or_make(leaves, make)
        gm = found.captured.gm
        bound = Bound.to(gm)
        if bound.stamp is not self._stamp:
            try:
                bound.take(ModelInputs.of(self.model, self._factor), self._stamp, gm)
            except ValueError:  # it is for another layout
                self.programs.clear()
                return self._find_program(leaves, spec)
        return found

    @no_collection()
    def _capture(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> StepProgram:
        """What runs the steps for the inputs of a call."""
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return self._build(self.model, args, kwargs)

    def _follow_weights(self, factor: float | None = None) -> None:
        del factor  # is known
        self._stamp = object()

    def _forget_programs(self) -> None:
        self.programs.clear()
        self.reset()

    def reset(self) -> None:
        """Start anew: the next call begins a trajectory."""
        for program in chain.from_iterable(self.programs.values()):
            program.reset()
        super().reset()


@dataclass(frozen=True)
class SiteValues:
    """What one site gave at one step.

    Attributes:
        outputs: Its outputs, or what it adds to its inputs.
        keys_values: Its keys and values, where these are looked at.
    """

    outputs: TensorSequence
    keys_values: TensorSequence = ()


@dataclass(frozen=True)
class ObservedStep:
    """A step that was computed.

    Attributes:
        leaves: The denoiser's flat inputs.
        position: Which step of which stream it is.
        outputs: The denoiser's flat outputs.
        exposed: The outputs that an observer has added to the graph.
        past: What each site gave at earlier steps of the trajectory, by step.
    """

    leaves: Sequence[Any]
    position: Position
    outputs: TensorSequence
    exposed: TensorSequence
    past: Mapping[int, list[SiteValues]]


class SiteObserver(ABC):
    """Runs the steps of one input signature as the model does, and looks at its sites.

    It is a `StepProgram` whose table computes everything and whose conditioning is evaluated
    step by step.

    Args:
        captured: The model as a graph.
        sites: As for ``transform``.
        num_steps: Steps of the trajectory.
        max_age: How many steps back values are kept.
    """

    def __init__(
        self, captured: Capture, sites: str | Sequence[str], num_steps: int, max_age: int
    ) -> None:
        self.captured, self.roles = captured, Roles.of(captured.gm)
        self.ahead = AheadPolicy("step", is_compiled=False)
        self._graph, self._matches = prepare_sites(captured.gm, sites)
        paths = [match.site.path for match in self._matches]
        self.table = Schedule.compute_all(num_steps).resolve(paths)
        self._num_outputs = len(graph_outputs(self._graph.graph))
        self._reuse = SiteReuse.of(*prepare_sites(captured.gm, sites))
        self._max_age = max_age
        # per stream its trajectory, and per step of that what each site gave
        self._past: dict[object, tuple[object, dict[int, list[SiteValues]]]] = {}

    @abstractmethod
    def look(self, step: ObservedStep) -> list[SiteValues]:
        """Measure a step, and tell what later steps are compared with, per site."""

    def reset(self) -> None:
        """Forget the steps before."""
        self._past.clear()

    def run(self, leaves: Sequence[Any], position: Position) -> list[torch.Tensor]:
        """Compute one step as the model does, and look at it; the denoiser's flat outputs."""
        trajectory, past = self._past.get(position.stream, (None, {}))
        if trajectory is not position.trajectory:
            past = {}
        past = {step: past[step] for step in past if position.step - step <= self._max_age}
        with without_autocast(self.captured.cast_on):
            values = self._graph(*leaves)
            outputs, exposed = values[: self._num_outputs], values[self._num_outputs :]
            now = self.look(ObservedStep(leaves, position, outputs, exposed, past))
        self._past[position.stream] = position.trajectory, {**past, position.step: now}
        return list(outputs)

    def reuse_error(self, step: ObservedStep, site: int, values: SiteValues) -> float:
        """Relative error of the denoiser's output if one site gave what it gave before."""
        outputs, _ = self._reuse.run(step.leaves, site, values.outputs)
        return relative_error(step.outputs, outputs).item()
