"""Lowering: from a region's graph to what runs it.

Each distinct variant of a region (actions resolved, dead code gone) is lowered once and
shared by all blocks and rows that have its structure. What runs it is the backend's choice.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dqar_fx.passes.pipeline import (
    COMPILED,
    PACKED,
    STAGE_AHEAD,
    select_passes,
)
from dqar_fx.passes.support.editing import generate_code
from dqar_fx.passes.support.graphs import structure_of
from dqar_fx.passes.support.runner import ignore, run_passes
from dqar_fx.passes.support.tracing_lock import TRACING
from dqar_fx.plan.plan import Variant
from dqar_fx.plan.unlowered import UnloweredRegions, specialise_region

from .packed_weights import PackedWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from torch import fx

    from dqar_fx.passes.support.runner import Observer, PassReport
    from dqar_fx.plan.plan import Plan, Specialised
    from dqar_fx.schedule.action import Action

    from .compile_options import CompileOptions

    ShareRegion = Callable[
        ["Lowering", fx.GraphModule, tuple[Action, ...], tuple[bool, ...]],
        Callable[..., Sequence[Any]],
    ]

logger = logging.getLogger(__name__)


class Lowering:
    """Specialises and lowers regions, each distinct one once.

    Args:
        options: How to lower.
        observe: Is shown each graph before and after passes, and ``"lowered"`` with the
            letters of its actions.

    Attributes:
        backend: What runs them.
        variants: The lowered variants by structure.
        reports: What passes did to them.
        share: Gives what runs a region, as programs of other sizes run it; it is given this,
            the region as it was, its actions and which of its outputs are live.
        packed_weights: The weights that are packed.
    """

    def __init__(self, options: CompileOptions, observe: Observer = ignore) -> None:
        self.share: ShareRegion | None = None
        self.packed_weights = PackedWeights()
        self.options, self.backend = options, options.backend
        self._observe = observe
        self.variants: dict[str, Variant] = {}
        self.reports: list[PassReport] = []
        self._known: dict[tuple[fx.GraphModule, object, object, bool], Variant] = {}
        self._unlowered = {
            False: UnloweredRegions(),
            True: UnloweredRegions(lambda gm: prepack_region(gm, options.disable)[0]),
        }
        self._narrowed: dict[
            tuple[fx.GraphModule, tuple[bool, ...]], tuple[fx.GraphModule, tuple[int, ...]]
        ] = {}

    def anew(self) -> Lowering:
        """Another one with the same options."""
        other = Lowering(self.options, self._observe)
        other.packed_weights = self.packed_weights
        return other

    def variant(
        self,
        plan: Plan,
        name: str,
        actions: tuple[Action, ...],
        live: tuple[bool, ...],
        *,
        packs: bool = False,
    ) -> Variant:
        """The lowered variant of a region; ``packs`` lets the options pack its weights."""
        region, packs = plan.regions[name], packs and self.options.prepack
        key = (region, actions, live, packs)
        if key in self._known:
            return self._known[key]
        with TRACING:
            return self._make_variant(region, actions, live, packs=packs)

    def _make_variant(
        self,
        region: fx.GraphModule,
        actions: tuple[Action, ...],
        live: tuple[bool, ...],
        *,
        packs: bool,
    ) -> Variant:
        """Lower a variant, unless another thread has done so meanwhile."""
        key = (region, actions, live, packs)
        if key not in self._known:
            gm, kept, report = specialise_region(region, actions, live, self._observe)
            self.reports.append(report)
            structure = structure_of(gm)
            packed: tuple[int, ...] = ()
            if packs:
                packed, reports = prepack_region(gm, self.options.disable, self._observe)
                self.reports += reports
            lowered_as = f"{structure}\npacked {packed}" if packed else structure
            if lowered_as not in self.variants:
                if self.share is None:
                    function = self.lower(gm)
                else:
                    function = self.share(self, region, actions, live)
                self.variants[lowered_as] = Variant(gm, function, kept, structure)
                self._note(gm, actions)
            self._known[key] = replace(
                self.variants[lowered_as], kept=kept, packed=frozenset(kept[i] for i in packed)
            )
        return self._known[key]

    def unlowered_of(self, plan: Plan, *, packs: bool = False) -> Specialised:
        """What tells which inputs the variants of a plan's regions take.

        Of those that may never run, too: nothing is lowered, shown or reported.
        """
        packs = packs and self.options.prepack
        unlowered = self._unlowered[packs]

        def specialised(
            region: str, actions: tuple[Action, ...], live: tuple[bool, ...]
        ) -> Variant:
            own = plan.regions[region]
            known = self._known.get((own, actions, live, packs))
            return known or unlowered.variant(own, actions, live)

        return specialised

    def _note(self, gm: fx.GraphModule, actions: Sequence[Action]) -> None:
        """Log and show what was lowered."""
        letters = "".join(action.letter for action in actions)
        name, size = self.backend.name, len(gm.graph.nodes)
        logger.info("lowered a region (%s): actions %s, %d nodes", name, letters or "-", size)
        self._observe("lowered", letters, gm)

    def narrowed(
        self, stage: fx.GraphModule, live: tuple[bool, ...]
    ) -> tuple[fx.GraphModule, tuple[int, ...]]:
        """What `narrow_stage` gives, worked out once per stage and live outputs."""
        if (stage, live) not in self._narrowed:
            with TRACING:
                gm, kept, reports = narrow_stage(
                    stage, live, self.options.disable, self._observe
                )
            self.reports += reports
            self._narrowed[stage, live] = gm, kept
        return self._narrowed[stage, live]

    def lower(self, gm: fx.GraphModule) -> Callable[..., Sequence[Any]]:
        """What runs a graph."""
        if self.backend.is_compiled:
            passes = select_passes(COMPILED, self.options.disable)
            self.reports += run_passes(gm, passes, "region", self._observe)
        generate_code(gm)
        return self.backend.compile(gm)


def prepack_region(
    gm: fx.GraphModule, disable: Collection[str] = (), observe: Observer | None = None
) -> tuple[tuple[int, ...], list[PassReport]]:
    """Let a region's graph take packed weights; their places among its inputs, and reports."""
    reports = run_passes(gm, select_passes(PACKED, disable), "region", observe)
    inputs = enumerate(gm.graph.find_nodes(op="placeholder"))
    return tuple(place for place, node in inputs if node.meta.get("packed")), reports


def narrow_stage(
    stage: fx.GraphModule,
    live: Sequence[bool],
    disable: Collection[str] = (),
    observe: Observer | None = None,
) -> tuple[fx.GraphModule, tuple[int, ...], list[PassReport]]:
    """A stage's whole graph, giving live outputs only, and computing no others.

    For all steps of a trajectory at once, where the order of sums differs anyway.

    Returns:
        The graph, the positions of the stage's inputs that it still takes, and the reports.
    """
    gm, kept, _ = specialise_region(stage, (), live)
    passes = select_passes(STAGE_AHEAD, disable)
    return gm, kept, run_passes(gm, passes, "stage", observe)
