"""Bytes of activations: an estimate, made before anything runs.

Each distinct variant of a region is run once on fake tensors in eager mode, which tells how
much it holds at most beside its inputs and what its outputs hold. Walking a row's bound calls
then adds up what flows between them, each tensor until its last reader. It is a bound for
eager mode; a compiler fuses what is counted here, but may take a workspace that is not.
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
from dqar_fx.plan.plan import Variant, bind
from dqar_fx.program.lowering import specialise_region

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import fx

    from dqar_fx.plan.liveness import Liveness
    from dqar_fx.plan.plan import BoundCall, Plan, Specialised
    from dqar_fx.program.program import Program
    from dqar_fx.schedule.action import Action

Owner = tuple[str, int]
"""Whose storage an output shows: ``("input", i)``, or ``("own", j)`` of the first of them."""
Group = tuple[int, int]
"""A storage that flows: number of the call that made it, and of its first output there."""


class StorageCounter(TorchDispatchMode):
    """Counts bytes of storages that operators make, while they are alive.

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
class Run:
    """What one call of a variant holds.

    Attributes:
        peak: Most bytes beside its inputs.
        owners: Per output, whose storage it shows.
        sizes: Per output, bytes of that storage.
        copies: Per output, bytes of the copy that `unify` makes of it; 0 where it makes none.
    """

    peak: int
    owners: tuple[Owner, ...]
    sizes: tuple[int, ...]
    copies: tuple[int, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Run:
        """Run a graph on its own fake tensors."""
        inputs = [node.meta.get("val") for node in gm.graph.find_nodes(op="placeholder")]
        with torch.no_grad(), StorageCounter(inputs) as counter:
            outputs = gm.forward(*inputs)
        first: dict[int, Owner] = {}
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
        """What its outputs hold once `unify` is done with them, inputs left out.

        An output that shows all of a parameter, and nothing else, takes no memory.
        """
        whole = zip(self.owners, self.sizes, self.copies, strict=True)
        own = {owner: size for owner, size, copy in whole if owner[0] == "own" and not copy}
        return sum(own.values()) + sum(self.copies)

    def __call__(self, *_: Any) -> tuple[Any, ...]:
        """In the place of the lowered region, which nobody calls."""
        raise AssertionError("a run that was measured is not run again")


@dataclass(frozen=True)
class Held:
    """Bytes of a walk over a plan.

    Attributes:
        peak: Most at any time, inputs left out.
        end: What its outputs hold.
    """

    peak: int
    end: int


class Activations:
    """Bytes of activations of one plan's rows, each variant run once.

    Args:
        program: Whose plan; its table does not matter.

    Attributes:
        output_bytes: Of what a step gives.
    """

    def __init__(self, program: Program) -> None:
        self._plan, self._timestep = program.plan, program.roles.timestep
        self._is_compiled = program.lowering.backend.is_compiled
        outputs = graph_outputs(program.captured.gm.graph)
        self.output_bytes: int = sum(node.meta["val"].nbytes for node in outputs)
        self._runs: dict[Any, tuple[Run, tuple[int, ...]]] = {}

    def constant_bytes(self, program: Program) -> int:
        """What stages that do not read the timestep hold between steps: exact."""
        lives = program.liveness.of_table()
        if program.lowering.backend.replays:
            return program.constant_bytes  # copied, all of it
        if not self._is_compiled:
            return sum(held.end for held in self._stages(lives, every_step=False))
        stages = zip(self._plan.stages, lives, strict=True)
        return sum(
            Run.of(specialise_region(stage.gm, (), live)[0]).unified_bytes
            for stage, live in stages
            if self._timestep not in stage.leaves
        )

    def of_program(self, program: Program) -> int:
        """The most that any row of a program's table holds.

        Slots, parameters, the caller's own tensors and conditioning that is kept between steps
        are left out.
        """
        is_tabulated = program.table_bytes > 0
        return max(
            self._row(row, program.liveness, is_tabulated) for row in program.table.rows
        )

    def _row(self, row: Sequence[Action], liveness: Liveness, is_tabulated: bool) -> int:
        stages = (
            [] if is_tabulated else self._stages(liveness.needs(row).step, every_step=True)
        )
        before = sum(held.end for held in stages)
        step = self._walk(self._plan, row)
        # outputs may be copied for the caller
        return max(
            before + sum(held.peak for held in stages), before + step.peak + self.output_bytes
        )

    def _stages(self, lives: Sequence[Sequence[bool]], *, every_step: bool) -> list[Held]:
        """Of the stages that read the timestep, or of the others."""
        return [
            self._walk(restrict(stage, tuple(live)), ())
            for stage, live in zip(self._plan.stages, lives, strict=True)
            if (self._timestep in stage.leaves) == every_step
        ]

    def _walk(self, plan: Plan, actions: Sequence[int]) -> Held:
        """Add up what the calls of a row hold."""
        calls = bind(plan, actions, self._variants_of(plan), lambda _: None)
        group: dict[int, Group | None] = dict.fromkeys(plan.inputs)
        readers, size = defaultdict[Group, set[int]](set), dict[Group, int]()
        peak = 0
        for at, call in enumerate(calls):
            run = call.function
            assert isinstance(run, Run)
            peak = max(peak, sum(size.values()) + run.peak)
            for number, mine, nbytes in self._flowing(at, call, run, group):
                group[number] = mine
                if mine is not None:
                    readers[mine].add(number)
                    size.setdefault(mine, nbytes)
            for number in call.dead:
                release(group.get(number), number, readers, size)
        return Held(max(peak, sum(size.values())), sum(size.values()))

    def _flowing(
        self, at: int, call: BoundCall, run: Run, group: dict[int, Group | None]
    ) -> list[tuple[int, Group | None, int]]:
        """Per output of a call its number, its storage, and the bytes of that."""
        found = list[tuple[int, Group | None, int]]()
        for number, (kind, i), nbytes in zip(call.outputs, run.owners, run.sizes, strict=True):
            if kind == "own":
                found.append((number, (at, i), nbytes))
            else:
                flowing = call.inputs[i] if i < len(call.inputs) else None
                mine = None if flowing is None else group.get(flowing)
                found.append((number, mine, nbytes))
        return found

    def _variants_of(self, plan: Plan) -> Specialised:
        def specialised(
            region: str, mine: tuple[Action, ...], live: tuple[bool, ...]
        ) -> Variant:
            gm = plan.regions[region]
            if (gm, mine, live) not in self._runs:
                own, kept, _ = specialise_region(gm, mine, live)
                self._runs[gm, mine, live] = Run.of(own), kept
            run, kept = self._runs[gm, mine, live]
            return Variant(gm, run, kept, "")

        return specialised


def release(
    mine: Group | None, number: int, readers: dict[Group, set[int]], size: dict[Group, int]
) -> None:
    """A number is read no more; its storage goes with its last number."""
    if mine is None:
        return
    readers[mine].discard(number)
    if not readers[mine]:
        size.pop(mine, None)
