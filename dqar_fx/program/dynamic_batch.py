"""Regions that are compiled once for all batch sizes.

Each input signature has an exact capture of its own. What is shared is what is compiled: a
region is freed of its batch size by comparison with the same region at another one, and serves
a third one if its graph, with that size put in, is the region that was captured there, node by
node. So captures decide what is computed: a wrong guess costs a compilation, never a result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import DqarError
from dqar_fx.notices import warn
from dqar_fx.passes import NoMatch, fix_batch, free_batch
from dqar_fx.passes.pipeline import BEFORE_COMPILED_ANY_BATCH, select_passes
from dqar_fx.passes.support.graphs import describe_layout, source_line, structure_of
from dqar_fx.passes.support.runner import fork, run_pass, run_passes

from .batch_signatures import BatchSignature
from .dynamic_shapes import spell_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from torch import fx
    from torch.utils import _pytree as pytree

    from dqar_fx.plan.plan import Plan

    from .lowering import Lowering
    from .program import Program


class Batches:
    """What the programs of a denoiser share across batch sizes.

    Attributes:
        regions: The regions compiled so far.
        batch_signatures: Input signatures that differ in the batch size alone.
    """

    def __init__(self) -> None:
        self.regions: list[FreeRegion] = []
        self.batch_signatures: list[BatchSignature] = []

    def join(
        self,
        program: Program,
        leaves: Sequence[Any],
        spec: pytree.TreeSpec,
        build: Callable[[Sequence[Any]], Program],
    ) -> None:
        """Let a program share its regions.

        The first program of a kind is built a second time, for twice the samples.
        """
        found = (f for f in self.batch_signatures if f.has(program, leaves, spec))
        alike = next(found, None)
        if alike is None:
            alike = BatchSignature.of(program, leaves, spec)
            self.batch_signatures.append(alike)
            try:
                alike.plans[2 * alike.batch] = build(alike.double(leaves)).plan
            except DqarError as error:
                warn_alone(alike.batch, f"twice the samples cannot be captured: {error}")
        batch = alike.batch_of(leaves)
        beside = [(size, plan) for size, plan in alike.plans.items() if size != batch]
        if beside:
            sharing = Sharing.between(self, batch, program.plan, *beside[0])
            program.lowering.share = sharing.function_of


@dataclass
class FreeRegion:
    """A compiled region of any batch size.

    Attributes:
        gm: Its graph.
        function: What runs it.
        structures: By batch size, the structure of the graph with that size put in.
    """

    gm: fx.GraphModule
    function: Callable[..., Sequence[Any]]
    structures: dict[int, str] = field(default_factory=dict)

    def structure_at(self, batch: int) -> str:
        """The structure that a captured region has if it is this one."""
        if batch not in self.structures:
            self.structures[batch] = structure_at(self.gm, batch)
        return self.structures[batch]

    def function_at(self, batch: int) -> Callable[..., Sequence[Any]]:
        """What runs it at a batch size."""
        if batch != 1:
            return self.function
        inputs = self.gm.graph.find_nodes(op="placeholder")
        layouts = [node.meta["layout"] for node in inputs]
        strides = (
            tuple(line.at(1) for line in each.stride) if each is not None else None
            for each in layouts
        )
        free = tuple(
            (i, stride)
            for i, (each, stride) in enumerate(zip(layouts, strides, strict=True))
            if stride is not None and each.is_free
        )
        return OneSample(self.function, free)


@dataclass(frozen=True)
class OneSample:
    """Runs a region on one sample, whose tensors are contiguous in more ways than one.

    A dimension of one element may have any stride, but a compiled region expects that which
    several samples have.

    Attributes:
        function: What runs the region.
        strides: Positions of inputs that have a row for each sample, and expected strides.
    """

    function: Callable[..., Sequence[Any]]
    strides: tuple[tuple[int, tuple[int, ...]], ...]

    def __call__(self, *inputs: torch.Tensor) -> Sequence[Any]:
        """Give the region's outputs."""
        given = list(inputs)
        for position, expected in self.strides:
            value = given[position]
            found = value.stride()
            if found != expected:
                pairs = zip(value.shape, found, expected, strict=True)
                stride = tuple(own if size > 1 else other for size, own, other in pairs)
                given[position] = value.as_strided(value.shape, stride)
        return self.function(*given)


def structure_at(gm: fx.GraphModule, batch: int) -> str:
    """The structure of a freed graph with a batch size put in."""
    fixed = fork(gm)
    fix_batch(fixed, batch)
    return structure_of(fixed, describe_layout)


@dataclass(frozen=True)
class Sharing:
    """How one program shares its regions.

    Attributes:
        batches: What all programs of the denoiser share.
        batch: The batch size of the program.
        other_batch: Another batch size, which was captured as well.
        mates: The region at the other batch size that each region is.
    """

    batches: Batches
    batch: int
    other_batch: int
    mates: dict[fx.GraphModule, fx.GraphModule]

    @classmethod
    def between(
        cls, batches: Batches, batch: int, plan: Plan, other_batch: int, other: Plan
    ) -> Sharing:
        """The sharing of a program that has this plan, given a plan at another batch size."""
        calls = zip(regions_called(plan), regions_called(other), strict=False)
        return cls(batches, batch, other_batch, dict(calls))

    def function_of(
        self,
        lowering: Lowering,
        gm: fx.GraphModule,
        region: fx.GraphModule,
        specialised: Callable[[fx.GraphModule], tuple[fx.GraphModule, Any, Any]],
    ) -> Callable[..., Sequence[Any]]:
        """What runs a region; lowered if no region of another batch size is the same."""
        captured = {self.batch: gm}
        try:
            if self.batch == 1:  # whose strides do not tell all regions apart
                captured |= self._captured_beside(gm, region, specialised)
            for known in self.batches.regions:
                if all(
                    known.structure_at(batch) == structure_of(each, describe_layout)
                    for batch, each in captured.items()
                ):
                    return known.function_at(self.batch)
            captured |= self._captured_beside(gm, region, specialised)
            free = free_of(captured, lowering)
            lowered = fork(free)
            passes = select_passes(BEFORE_COMPILED_ANY_BATCH, lowering.options.disable)
            lowering.reports += run_passes(lowered, passes, "region")
            refuse_convolutions(lowered)
        except NoMatch as miss:
            warn_alone(self.batch, f"{miss}, {source_line(miss.node)}")
            return lowering.lower(gm)
        made = FreeRegion(free, lowering.lower(lowered, **spell_shapes(lowered)))
        self.batches.regions.append(made)
        return made.function_at(self.batch)

    def _captured_beside(
        self,
        gm: fx.GraphModule,
        region: fx.GraphModule,
        specialised: Callable[[fx.GraphModule], tuple[fx.GraphModule, Any, Any]],
    ) -> dict[int, fx.GraphModule]:
        """The region at the other batch size.

        Raises:
            NoMatch: There is none.
        """
        first = next(iter(gm.graph.nodes))
        mate = self.mates.get(region)
        if mate is None:
            raise NoMatch(f"a batch of {self.other_batch} has no such region", first)
        try:
            return {self.other_batch: specialised(mate)[0]}
        except ValueError as error:
            reason = f"a batch of {self.other_batch} has another region: {error}"
            raise NoMatch(reason, first) from error


def free_of(captured: dict[int, fx.GraphModule], lowering: Lowering) -> fx.GraphModule:
    """A region without its batch size, given as it is at two.

    Raises:
        NoMatch: It cannot be freed.
    """
    large, small = max(captured), min(captured)
    free = fork(captured[large])
    each = partial(free_batch, other=captured[small], batches=(large, small))
    lowering.reports.append(run_pass(free, each, "region"))
    for batch, gm in captured.items():
        if structure_at(free, batch) != structure_of(gm, describe_layout):
            first = next(iter(gm.graph.nodes))
            raise NoMatch(f"freed of its batch size, it is another at {batch}", first)
    return free


def refuse_convolutions(gm: fx.GraphModule) -> None:
    """Raise for a convolution of the samples: its strides depend on their number.

    Raises:
        NoMatch: There is one.
    """
    layouts = (n.meta.get("layout") for n in gm.graph.find_nodes(op="placeholder"))
    if not any(layout is not None and layout.is_free for layout in layouts):
        return
    for node in gm.graph.nodes:
        if node.op == "call_function" and "conv" in str(node.target):
            raise NoMatch("the strides of its result depend on the batch size", node)


def regions_called(plan: Plan) -> Iterator[fx.GraphModule]:
    """The region of each call of a plan, conditioning first."""
    inner = (regions_called(stage.plan) for stage in plan.stages)
    own = (plan.regions[call.region] for call in plan.calls)
    return chain(*inner, own)


def warn_alone(batch: int, reason: str) -> None:
    """Say that something is compiled for one batch size."""
    warn(
        f"dynamic: compiled for a batch of {batch} alone, and for each other size anew: "
        f"{reason}. Expected a model that computes the same for any number of samples; where "
        "that cannot be, leave 'dynamic' out"
    )
