"""Bytes of activations: an estimate, made before anything runs.

Each distinct variant of a region is run once on fake tensors in eager mode, which tells how
much it holds at most beside its inputs and what its outputs hold. Walking a row's calls then
adds up what flows between them, each tensor until its last reader. It is a bound for eager
mode; a compiler fuses what is counted here, but may take a workspace that is not.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from dqar_fx.conditioning.conditioning import is_alone
from dqar_fx.conditioning.parameter_bytes import storage_key
from dqar_fx.passes.support.graphs import graph_outputs
from dqar_fx.plan.liveness import restrict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import fx

    from dqar_fx.plan.liveness import Liveness
    from dqar_fx.plan.plan import LiveCall, Plan
    from dqar_fx.plan.unlowered import UnloweredRegions
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.action import Action

StorageOrigin = tuple[str, int]
"""Whose storage an output shows: ``("input", i)``, or ``("own", j)`` of the first of them."""
FlowingStorage = tuple[int, int]
"""A storage that flows: number of the call that made it, and of its first output there."""


class StorageCounter(TorchDispatchMode):
    """Counts bytes of the storages that operators make, while they are alive.

    Args:
        given: Tensors whose storages do not count.

    Attributes:
        now: Bytes that are alive.
        peak: Most bytes that were alive.
    """

    def __init__(self, given: Iterable[object] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it so
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary(ref_type=weakref.ref)
        for value in given:
            if isinstance(value, torch.Tensor):
                self._known[value.untyped_storage()] = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator, and count what it gives."""
        del types
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, num_bytes: int) -> None:
        self.now -= num_bytes


@dataclass(frozen=True)
class CallFootprint:
    """What one call of a specialised graph holds.

    Attributes:
        peak: Most bytes beside its inputs.
        origins: Per output, whose storage it shows.
        sizes: Per output, bytes of that storage.
        copies: Per output, bytes of the copy that `unify` makes of it; 0 where it makes none.
    """

    peak: int
    origins: tuple[StorageOrigin, ...]
    sizes: tuple[int, ...]
    copies: tuple[int, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> CallFootprint:
        """Run a graph on the fake tensors of its inputs, and count."""
        inputs = [node.meta.get("val") for node in gm.graph.find_nodes(op="placeholder")]
        with torch.no_grad(), StorageCounter(inputs) as counter:
            outputs = gm.forward(*inputs)
        first: dict[int, StorageOrigin] = {}
        for j, output in reversed(list(enumerate(outputs))):
            first[storage_key(output)] = ("own", j)
        for i, value in enumerate(inputs):
            if isinstance(value, torch.Tensor):
                first[storage_key(value)] = ("input", i)
        return cls(
            counter.peak,
            tuple(first[storage_key(output)] for output in outputs),
            tuple(output.untyped_storage().nbytes() for output in outputs),
            tuple(0 if is_alone(o) else o.numel() * o.itemsize for o in outputs),
        )

    @property
    def unified_bytes(self) -> int:
        """Bytes that its outputs hold once `unify` is done with them, inputs left out.

        An output that shows all of a parameter, and nothing else, takes no memory.
        """
        whole = zip(self.origins, self.sizes, self.copies, strict=True)
        own = {origin: size for origin, size, copy in whole if origin[0] == "own" and not copy}
        return sum(own.values()) + sum(self.copies)


@dataclass(frozen=True)
class PlanFootprint:
    """What the calls of a plan hold, its inputs left out.

    Attributes:
        peak: Most bytes at any time.
        end: Bytes of its outputs.
    """

    peak: int
    end: int


class Activations:
    """Bytes of activations of one plan's rows, each variant run once.

    The program's table does not matter; ``output_bytes`` are those of what a step gives.
    """

    def __init__(self, program: Program, regions: UnloweredRegions) -> None:
        self._plan, self._regions, self._ahead = program.plan, regions, program.ahead
        outputs = graph_outputs(program.captured.gm.graph)
        self.output_bytes: int = sum(node.meta["val"].nbytes for node in outputs)
        self._footprints: dict[fx.GraphModule, CallFootprint] = {}

    def constant_bytes(self, program: Program) -> int:
        """Count, exactly, what stages that do not read the timestep hold between steps."""
        lives = program.liveness.of_table()
        if program.lowering.backend.replays:
            return program.constant_bytes  # copied, all of it
        if not self._ahead.is_compiled:
            return sum(held.end for held in self._stages(lives, is_timed=False))
        stages = zip(self._plan.stages, lives, strict=True)
        return sum(
            self._footprint(self._regions.variant(stage.gm, (), live).gm).unified_bytes
            for stage, live in stages
            if not self._ahead.is_timed(stage)
        )

    def of_program(self, program: Program) -> int:
        """Count the most bytes that any row of a program's table holds.

        Slots, parameters, the caller's own tensors and conditioning that is kept between steps
        are left out.
        """
        is_tabulated = program.table_bytes > 0
        return max(
            self._row(row, program.liveness, is_tabulated) for row in program.table.rows
        )

    def _row(self, row: Sequence[Action], liveness: Liveness, is_tabulated: bool) -> int:
        stages = [] if is_tabulated else self._stages(liveness.needs(row).step, is_timed=True)
        before = sum(held.end for held in stages)
        step = self._walk(self._plan, row)
        # outputs may be copied for the caller
        return max(
            before + sum(held.peak for held in stages), before + step.peak + self.output_bytes
        )

    def _stages(
        self, lives: Sequence[Sequence[bool]], *, is_timed: bool
    ) -> list[PlanFootprint]:
        """The stages that read the timestep, or the others."""
        return [
            self._walk(restrict(stage, tuple(live)), ())
            for stage, live in zip(self._plan.stages, lives, strict=True)
            if self._ahead.is_timed(stage) == is_timed
        ]

    def _walk(self, plan: Plan, actions: Sequence[int]) -> PlanFootprint:
        """Add up what the calls of a row hold."""
        storage_of: dict[int, FlowingStorage | None] = dict.fromkeys(plan.inputs)
        readers = defaultdict[FlowingStorage, set[int]](set)
        sizes, peak = dict[FlowingStorage, int](), 0
        for at, call in enumerate(self._regions.calls(plan, actions)):
            footprint = self._footprint(call.variant.gm)
            peak = max(peak, sum(sizes.values()) + footprint.peak)
            for number, storage, nbytes in flowing_outputs(at, call, footprint, storage_of):
                storage_of[number] = storage
                if storage is not None:
                    readers[storage].add(number)
                    sizes.setdefault(storage, nbytes)
            for number in call.dead:
                storage = storage_of.get(number)
                if storage is None:
                    continue
                readers[storage].discard(number)
                if not readers[storage]:  # it goes with its last number
                    sizes.pop(storage, None)
        return PlanFootprint(max(peak, sum(sizes.values())), sum(sizes.values()))

    def _footprint(self, gm: fx.GraphModule) -> CallFootprint:
        if gm not in self._footprints:
            self._footprints[gm] = CallFootprint.of(gm)
        return self._footprints[gm]


def flowing_outputs(
    at: int,
    call: LiveCall,
    footprint: CallFootprint,
    storage_of: dict[int, FlowingStorage | None],
) -> Iterator[tuple[int, FlowingStorage | None, int]]:
    """Give the number of each output of a call, its storage, and the bytes of that."""
    outputs = zip(call.outputs, footprint.origins, footprint.sizes, strict=True)
    for number, (kind, i), nbytes in outputs:
        if kind == "own":
            yield number, (at, i), nbytes
        else:
            flowing = call.inputs[i] if i < len(call.inputs) else None
            yield number, None if flowing is None else storage_of.get(flowing), nbytes
