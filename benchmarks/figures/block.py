"""The block that a denoiser repeats, read off its graphs: operators grouped by their module.

A module's operators need not be neighbours: those that a block calls itself come before,
between and after those of its parts. So a box is what has one module *and* one level, where
the level grows along the data whenever the module changes; then no two boxes need each other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import fx

from benchmarks.harness.macs import count_macs
from dqar_fx import Action, Denoiser

INPUT, CONDITIONING, SLOT, OUTPUT = "input", "conditioning", "slot", "output"
BLOCK = "block"
"""Name of a box of what the block itself calls."""
Key = tuple[str, int]
"""Name of a module (or one of the words above), and the level."""


@dataclass(frozen=True)
class Box:
    """What a box stands for in one variant of the block.

    Attributes:
        operators: Names, in order.
        macs: Multiply-accumulates.
    """

    operators: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class Variant:
    """The block as it is for one action.

    Attributes:
        action: The action of its sites.
        boxes: By key; those that are not there have been removed.
        edges: Number of tensors by the keys that they lead from and to.
    """

    action: Action
    boxes: Mapping[Key, Box]
    edges: Mapping[tuple[Key, Key], int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(box.macs for box in self.boxes.values())

    @property
    def num_operators(self) -> int:
        """Operators."""
        return sum(len(box.operators) for box in self.boxes.values())


def read_variants(denoiser: Denoiser) -> tuple[Variant, Variant, Variant]:
    """The block that is repeated most: storing, computing, reusing."""
    program = denoiser.program
    calls = [call for call in program.plan.calls if call.columns]
    counts = Counter(call.region for call in calls)
    call = max(calls, key=lambda call: counts[call.region])
    ahead = {number for stage in program.plan.stages for number in stage.outputs}
    names = Names(
        denoiser.table.sites,
        common_module(program.plan.regions[call.region]),
        frozenset(i for i, number in enumerate(call.inputs) if number in ahead),
    )
    homes: dict[str, Key] = {}

    def read(action: Action) -> Variant:
        live = tuple(number is not None for number in call.outputs)
        actions = (action,) * len(call.columns)
        found = program.lowering.variant(program.plan, call.region, actions, live)
        keys = group_nodes(names.name_all(found.gm, found.kept), homes)
        edges = Counter(
            (keys[a], key)
            for node, key in keys.items()
            for a in node.all_input_nodes
            if a in keys and keys[a] != key
        )
        return Variant(action, find_boxes(keys), edges)

    return read(Action.STORE), read(Action.COMPUTE), read(Action.REUSE)


# ---- what a node belongs to -----------------------------------------------------------------


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
        if path is None:  # a pass has made it
            return SLOT
        # From the block on: its parts, and the parts of its attention.
        is_site = any(f"{path}.".startswith(f"{site}.") for site in self.sites)
        inside = path.removeprefix(self.block).lstrip(".")
        return ".".join(inside.split(".")[: 2 if is_site else 1]) or BLOCK


def module_path(node: fx.Node) -> str | None:
    """Path of the innermost module that a node comes from; None for nodes of a pass."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else None


def common_module(region: fx.GraphModule) -> str:
    """Path of the innermost module that all operators of a region are in."""
    nodes = (node for node in region.graph.nodes if node.op == "call_function")
    paths = [path.split(".") for node in nodes if (path := module_path(node)) is not None]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in shared)


def group_nodes(names: Mapping[fx.Node, str], homes: dict[str, Key]) -> dict[fx.Node, Key]:
    """The key of each node.

    Args:
        names: What each node belongs to, in graph order; nodes left out have no box.
        homes: Keys by node name, of the variants before; equal names are equal nodes. What is
            found here is added.
    """
    keys: dict[fx.Node, Key] = {}
    for node, name in names.items():
        inputs = [keys[a] for a in node.all_input_nodes if a in keys]
        # A node is above all that it reads from other modules.
        level = max((level + (other != name) for other, level in inputs), default=1)
        level = 0 if name in (INPUT, CONDITIONING, SLOT) else level
        keys[node] = homes.setdefault(node.name, (name, level))
    return keys


# ---- what a box holds -----------------------------------------------------------------------


def find_boxes(keys: Mapping[fx.Node, Key]) -> dict[Key, Box]:
    """The boxes of a variant, in the order of their first nodes."""
    members: dict[Key, list[fx.Node]] = {key: [] for key in keys.values()}
    for node, key in keys.items():
        if node.op == "call_function":
            members[key].append(node)
    return {
        key: Box(
            tuple(node.target.__name__.partition(".")[0] for node in nodes),
            sum(map(macs_of, nodes)),
        )
        for key, nodes in members.items()
    }


def macs_of(node: fx.Node) -> int:
    """Multiply-accumulates of a node, run on the meta device."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), to_meta)
    return count_macs(lambda: node.target(*args, **kwargs))


def to_meta(node: fx.Node) -> torch.Tensor:
    """A tensor of a node's shape that has no values."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
