"""Lowering: from a region's graph to what runs it.

Each distinct variant of a region (actions resolved, dead code gone) is lowered once and
shared by all blocks and rows that have its structure. ``regional`` compiles the variants of
blocks and of what lies between; ``whole`` has a single region, the step; ``None`` runs the
variants' graphs as they are, on any device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.passes import copy_always, narrow_linears, specialise, turn_skinny_linears
from dqar_fx.passes.graphs import generate_code, graph_outputs, structure_of

from .errors import FormatError
from .plan import Variant
from .runner import fork, ignore, run_pass, run_passes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    from dqar_fx.passes import Action

    from .batches import Sharing
    from .plan import Plan, Specialised
    from .runner import Observer, PassReport

logger = logging.getLogger(__name__)

UNITS = ("regional", "whole")
REPLAYING_MODES = ("reduce-overhead", "max-autotune")
"""Modes of ``torch.compile`` that replay CUDA graphs: these own their outputs' memory."""
COMPILED = (
    narrow_linears,  # first: it knows linears as they are captured
    turn_skinny_linears,
)
"""Passes that may change the order of sums: for compilers, which do so themselves."""


@dataclass(frozen=True)
class CompileOptions:
    """How to lower.

    Attributes:
        unit: ``"regional"``, ``"whole"``, or None for eager.
        keywords: Passed on to ``torch.compile``.
        dynamic: Whether what is compiled serves all batch sizes.
    """

    unit: str | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    dynamic: bool = False

    @classmethod
    def of(cls, compile: str | Mapping[str, Any] | None) -> CompileOptions:
        """Read the ``compile`` argument of ``transform``.

        Raises:
            FormatError: An unknown unit, or no unit at all; ``dynamic`` where nothing is
                compiled, with CUDA graphs, or neither true nor false.
        """
        if compile is None or isinstance(compile, str):
            unit, keywords = compile, dict[str, Any]()
        elif isinstance(compile, Mapping):
            keywords = dict(compile)
            unit = keywords.pop("unit", "regional")
        else:
            raise FormatError(
                f"compile={compile!r}: expected None, 'regional', 'whole', or a dict of "
                "torch.compile keywords with an optional 'unit'"
            )
        if unit is not None and unit not in UNITS:
            raise FormatError(f"compile={unit!r} is unknown; known are None, {UNITS}")
        is_dynamic = keywords.get("dynamic") is True
        if keywords.get("dynamic") not in (None, True, False):
            raise FormatError(
                f"compile={{'dynamic': {keywords['dynamic']!r}}}: expected True, so that all "
                "batch sizes share what is compiled, or False or None, as for torch.compile"
            )
        if is_dynamic:
            del keywords["dynamic"]
        options = cls(unit, keywords, is_dynamic)
        options.refuse_fixed_batch()
        return options

    def refuse_fixed_batch(self) -> None:
        """Raise for options that fix the batch size where it should be dynamic."""
        if not self.dynamic:
            return
        if self.unit is None:
            raise FormatError(
                "compile={'unit': None, 'dynamic': True}: nothing is compiled, so nothing can "
                f"serve several batch sizes. Expected a unit of {UNITS}; without one, leave "
                "'dynamic' out: each batch size is captured when it comes"
            )
        if self.replays:
            raise FormatError(
                f"compile={dict(self.keywords)} with 'dynamic': True: a CUDA graph is recorded"
                " for tensors of fixed sizes. Expected one of the two: leave 'dynamic' out, so"
                " that each batch size is compiled; or leave CUDA graphs out (modes "
                f"{REPLAYING_MODES}, option 'triton.cudagraphs')"
            )
        if "shapes_spec" in self.keywords:
            raise FormatError(
                "compile has both 'dynamic': True and 'shapes_spec', but which dimensions are "
                "dynamic follows from the captures. Leave 'shapes_spec' out"
            )

    @property
    def replays(self) -> bool:
        """Whether an output may be overwritten when a region runs again."""
        options = self.keywords.get("options") or {}
        graphs = bool(options.get("triton.cudagraphs"))
        return graphs or self.keywords.get("mode") in REPLAYING_MODES


class Lowering:
    """Specialises and lowers regions, each distinct one once.

    Args:
        options: How.
        observe: Is shown each graph before and after passes, and ``"lowered"`` with the
            letters of its actions.

    Attributes:
        variants: The lowered variants by structure.
        reports: What passes did to them.
        sharing: What is shared with programs of other batch sizes; None if nothing.
    """

    def __init__(self, options: CompileOptions, observe: Observer = ignore) -> None:
        self.sharing: Sharing | None = None
        self.options = options
        self._observe = observe
        self.variants: dict[str, Variant] = {}
        self.reports: list[PassReport] = []
        self._known: dict[tuple[fx.GraphModule, object, object], Variant] = {}
        self._kept: dict[tuple[fx.GraphModule, object, object], tuple[int, ...]] = {}
        self._narrowed: dict[
            tuple[fx.GraphModule, tuple[bool, ...]], tuple[fx.GraphModule, tuple[int, ...]]
        ] = {}

    def variant(
        self, region: fx.GraphModule, actions: tuple[Action, ...], live: tuple[bool, ...]
    ) -> Variant:
        """The lowered variant of a region for actions and live outputs."""
        key = (region, actions, live)
        if key not in self._known:
            gm, kept, report = specialise_region(region, actions, live, self._observe)
            self.reports.append(report)
            structure = structure_of(gm)
            if structure not in self.variants:
                if self.sharing is None:
                    function = self.lower(gm)
                else:
                    again = partial(specialise_region, actions=actions, live=live)
                    function = self.sharing.function_of(self, gm, region, again)
                self.variants[structure] = Variant(gm, function, kept, structure)
                self._note(gm, actions)
            shared = self.variants[structure]
            self._known[key] = Variant(shared.gm, shared.function, kept, structure)
        return self._known[key]

    def unlowered_of(self, plan: Plan) -> Specialised:
        """What tells which inputs the variants of a plan's regions take.

        Of those that may never run, too: nothing is lowered, shown or reported.
        """

        def specialised(
            region: str, actions: tuple[Action, ...], live: tuple[bool, ...]
        ) -> Variant:
            gm = plan.regions[region]
            key = (gm, actions, live)
            if key in self._known:
                return self._known[key]
            if key not in self._kept:
                _, self._kept[key], _ = specialise_region(gm, actions, live)
            return Variant(gm, gm.forward, self._kept[key], "")

        return specialised

    def _note(self, gm: fx.GraphModule, actions: Sequence[Action]) -> None:
        """Log and show what was lowered."""
        letters = "".join(action.letter for action in actions)
        unit, size = self.options.unit or "eager", len(gm.graph.nodes)
        logger.info("lowered a region (%s): actions %s, %d nodes", unit, letters or "-", size)
        self._observe("lowered", letters, gm)

    def narrowed(
        self, stage: fx.GraphModule, live: tuple[bool, ...]
    ) -> tuple[fx.GraphModule, tuple[int, ...]]:
        """As `narrow_stage` gives them; each once."""
        if (stage, live) not in self._narrowed:
            gm, kept, report = narrow_stage(stage, live, self._observe)
            self.reports.append(report)
            self._narrowed[stage, live] = gm, kept
        return self._narrowed[stage, live]

    def count_variants(self, region: fx.GraphModule) -> int:
        """Distinct lowered variants of a region so far."""
        return len({v.structure for (of, *_), v in self._known.items() if of is region})

    def lower(self, gm: fx.GraphModule, **shapes: Any) -> Callable[..., Sequence[Any]]:
        """What runs a graph; ``shapes`` are more keywords of ``torch.compile``."""
        if self.options.unit is None:
            generate_code(gm)
            return gm.forward
        passes = (*COMPILED, copy_always) if shapes else COMPILED
        self.reports += run_passes(gm, passes, "region", self._observe)
        generate_code(gm)
        keywords = {"fullgraph": True, **self.options.keywords, **shapes}
        return torch.compile(gm.forward, **keywords)


def specialise_region(
    region: fx.GraphModule,
    actions: Sequence[Action],
    live: Sequence[bool],
    observe: Observer | None = None,
) -> tuple[fx.GraphModule, tuple[int, ...], PassReport]:
    """A region's graph for actions, giving live outputs only.

    Returns:
        The graph, the positions of the region's inputs that it still takes, and the report.
    """
    gm = fork(region)
    outputs = zip(graph_outputs(gm.graph), live, strict=True)
    gm.graph.output_node().args = (tuple(node for node, alive in outputs if alive),)
    before = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    report = run_pass(gm, partial(specialise, actions=actions), "region", observe)
    after = {node.name for node in gm.graph.find_nodes(op="placeholder")}
    return gm, tuple(i for i, name in enumerate(before) if name in after), report


def narrow_stage(
    stage: fx.GraphModule, live: Sequence[bool], observe: Observer | None = None
) -> tuple[fx.GraphModule, tuple[int, ...], PassReport]:
    """A stage's whole graph, giving live outputs only, and computing no others.

    For all steps of a trajectory at once, where the order of sums differs anyway.

    Returns:
        The graph, the positions of the stage's inputs that it still takes, and the report.
    """
    gm, kept, _ = specialise_region(stage, (), live)
    return gm, kept, run_pass(gm, narrow_linears, "stage", observe)
