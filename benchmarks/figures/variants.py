"""The variants of the block that a denoiser repeats: storing, computing, reusing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import fx

from benchmarks.figures.boxes import (
    CONDITIONING,
    INPUT,
    OUTPUT,
    SLOT,
    Key,
    Variant,
    boxes_of,
    edges_of,
    group_nodes,
)
from dqar_fx import Action, Denoiser
from dqar_fx.plan.plan import PlannedCall


@dataclass(frozen=True)
class Names:
    """Names nodes of one block after what they belong to.

    Attributes:
        sites: Module paths of all sites: their parts get boxes of their own.
        block: Module path of the block.
        conditioning: Positions of the block's inputs that are evaluated ahead.
    """

    sites: tuple[str, ...]
    block: str
    conditioning: frozenset[int]

    def name_all(self, gm: fx.GraphModule, kept: Sequence[int]) -> dict[fx.Node, str]:
        """Names of the nodes of a variant; weights have none.

        Args:
            gm: Its graph.
            kept: Positions of the block's inputs that it takes.
        """
        positions = dict(zip(gm.graph.find_nodes(op="placeholder"), kept, strict=True))
        return {
            node: self.name_of(node, positions.get(node))
            for node in gm.graph.nodes
            if "parameter" not in node.meta
        }

    def name_of(self, node: fx.Node, position: int | None) -> str:
        """What a node belongs to; ``position`` is that of an input."""
        if node.op == "output":
            return OUTPUT
        if "slot" in node.meta:
            return SLOT
        if node.op == "placeholder":
            return CONDITIONING if position in self.conditioning else INPUT
        path = module_path(node)
        return SLOT if path is None else self.shorten(path)

    def shorten(self, path: str) -> str:
        """A module path from the block on: its parts, and the parts of its attention."""
        is_site = any(f"{path}.".startswith(f"{site}.") for site in self.sites)
        inside = path.removeprefix(self.block).lstrip(".")
        return ".".join(inside.split(".")[: 2 if is_site else 1]) or "block"


def module_path(node: fx.Node) -> str | None:
    """Path of the innermost module that a node comes from; None for nodes of a pass."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else None


def read_variants(denoiser: Denoiser) -> tuple[Variant, Variant, Variant]:
    """The block that is repeated most: storing, computing, reusing."""
    program = denoiser.program
    call = most_repeated([call for call in program.plan.calls if call.columns])
    region = program.plan.regions[call.region]
    ahead = {number for stage in program.plan.stages for number in stage.outputs}
    names = Names(
        denoiser.table.sites,
        common_module(region),
        frozenset(i for i, number in enumerate(call.inputs) if number in ahead),
    )
    homes: dict[str, Key] = {}

    def read(action: Action) -> Variant:
        live = tuple(number is not None for number in call.outputs)
        actions = (action,) * len(call.columns)
        found = program.lowering.variant(program.plan, call.region, actions, live)
        keys = group_nodes(names.name_all(found.gm, found.kept), homes)
        return Variant(action, boxes_of(keys), edges_of(keys))

    return read(Action.STORE), read(Action.COMPUTE), read(Action.REUSE)


def most_repeated(calls: Sequence[PlannedCall]) -> PlannedCall:
    """The first call of the region that is called most."""
    counts = Counter(call.region for call in calls)
    return max(calls, key=lambda call: counts[call.region])


def common_module(region: fx.GraphModule) -> str:
    """Path of the innermost module that all operators of a region are in."""
    nodes = (node for node in region.graph.nodes if node.op == "call_function")
    paths = [path.split(".") for node in nodes if (path := module_path(node)) is not None]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in shared)
