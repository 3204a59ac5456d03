"""Which parameters serve what, in bytes of distinct storages.

Exact before anything runs, also on the meta device: two tensors over one storage count once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor

from dqar_fx.passes.support.equal_tensors import find_tensor
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.passes.support.inner_tensors import inner_tensors
from dqar_fx.passes.support.views import find_shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import fx, nn

    from dqar_fx.capture.capture import Capture
    from dqar_fx.capture.inputs import Roles
    from dqar_fx.plan.plan import Plan, Stage, Static


class PlannedModel(Protocol):
    """A captured model, its inputs' roles, and the plan that says what reads a parameter."""

    roles: Roles

    @property
    def captured(self) -> Capture:
        """The model as a graph."""

    @property
    def plan(self) -> Plan:
        """The step's stages and regions."""


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of parameters and buffers, each storage counted once.

    Attributes:
        step: Of those that a step reads, of any captured signature: always resident.
        conditioning: Of those that conditioning stages alone read.
        unused: Of those that nothing reads.
        merged: Held by the original beyond the denoiser's, since equal to others.
    """

    step: int
    conditioning: int
    unused: int
    merged: int = 0

    @property
    def total(self) -> int:
        """What the denoiser holds while nothing is released."""
        return self.step + self.conditioning + self.unused

    @property
    def released(self) -> int:
        """What the steps of a trajectory can do without."""
        return self.conditioning + self.unused


def count_parameters(
    programs: Iterable[PlannedModel], model: nn.Module | None = None, merged: int = 0
) -> ParameterBytes:
    """Count the tensors of programs over one model, and of the model."""
    programs = list(programs)
    owners = [*([] if model is None else [model]), *(p.captured.gm for p in programs)]
    sizes = {
        storage_key(tensor): tensor.untyped_storage().nbytes()
        for owner in owners
        for tensor in tensors_of(owner)
    }
    step = set(chain.from_iterable(map(step_storages, programs)))
    stages = {
        key
        for program in programs
        for stage in program.plan.stages
        for key in storages(program, stage.static)
    } - step
    return ParameterBytes(
        step=sum(sizes[key] for key in step),
        conditioning=sum(sizes[key] for key in stages),
        unused=sum(size for key, size in sizes.items() if key not in step | stages),
        merged=merged,
    )


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the parameters, buffers and constants of a module, or their inner tensors."""
    seen = set[int]()
    for inner in module.modules():
        own = (
            v
            for v in vars(inner).values()
            if isinstance(v, torch.Tensor) and not isinstance(v, FakeTensor)
        )
        for tensor in chain(inner._parameters.values(), inner._buffers.values(), own):
            for _, each in () if tensor is None else inner_tensors(tensor):
                if id(each) not in seen:
                    seen.add(id(each))
                    yield each


def storage_key(tensor: torch.Tensor) -> int:
    """A number that tensors over one storage share."""
    key: int = tensor.untyped_storage()._cdata
    return key


def step_storages(program: PlannedModel) -> set[int]:
    """Storages that calls of the step read, through what stages give too."""
    static = chain.from_iterable(c.static for c in program.plan.calls)
    return storages(program, chain(static, shown_parameters(program.plan.stages)))


def storages(program: PlannedModel, static: Iterable[Static]) -> set[int]:
    """Storages of the parameters among static arguments."""
    paths = {argument for argument in static if isinstance(argument, str)}
    return {storage_key(find_tensor(program.captured.gm, path)) for path in paths}


def shown_parameters(stages: Iterable[Stage]) -> set[Static]:
    """Parameters that stages may give views of: such a view holds their memory."""
    shown: dict[int, Static] = {}
    for stage in stages:
        inputs = [*map(shown.get, stage.inputs), *stage.static]
        inner = zip(stage.gm.graph.find_nodes(op="placeholder"), inputs, strict=True)
        given: dict[fx.Node, Static] = dict(inner)
        for number, node in zip(stage.outputs, graph_outputs(stage.gm.graph), strict=True):
            found = given.get(find_shown(node))
            if found is not None and number is not None:
                shown[number] = found
    return set(shown.values())
