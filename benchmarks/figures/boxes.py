"""Boxes of a transformer block, read off a graph: operators grouped by their module.

A module's operators need not be neighbours: those that a block calls itself come before,
between and after those of its parts. So a box is what has one module *and* one level, where
the level grows along the data whenever the module changes; then no two boxes need each other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from benchmarks.harness.macs import count_macs
from dqar_fx import Action

INPUT, CONDITIONING, SLOT, OUTPUT = "input", "conditioning", "slot", "output"
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


def group_nodes(names: Mapping[fx.Node, str], homes: dict[str, Key]) -> dict[fx.Node, Key]:
    """The key of each node.

    Args:
        names: What each node belongs to, in graph order; nodes left out have no box.
        homes: Keys by node name, of the variants before; equal names are equal nodes. What is
            found here is added.
    """
    keys: dict[fx.Node, Key] = {}
    for node, name in names.items():
        level = level_of(name, [keys[a] for a in node.all_input_nodes if a in keys])
        keys[node] = homes.setdefault(node.name, (name, level))
    return keys


def level_of(name: str, inputs: Sequence[Key]) -> int:
    """The level of a node: above all that it reads from other modules."""
    if name in (INPUT, CONDITIONING, SLOT):
        return 0
    return max((level + (other != name) for other, level in inputs), default=1)


def edges_of(keys: Mapping[fx.Node, Key]) -> Counter[tuple[Key, Key]]:
    """Tensors that lead from box to box."""
    return Counter(
        (keys[a], key)
        for node, key in keys.items()
        for a in node.all_input_nodes
        if a in keys and keys[a] != key
    )


def boxes_of(keys: Mapping[fx.Node, Key]) -> dict[Key, Box]:
    """The boxes of a variant, in the order of their first nodes."""
    members: dict[Key, list[fx.Node]] = {key: [] for key in keys.values()}
    for node, key in keys.items():
        if node.op == "call_function":
            members[key].append(node)
    return {
        key: Box(tuple(map(operator_of, nodes)), sum(map(macs_of, nodes)))
        for key, nodes in members.items()
    }


def operator_of(node: fx.Node) -> str:
    """Name of a node's operator, without its overload."""
    target: Any = node.target
    return str(target.__name__).partition(".")[0]


def macs_of(node: fx.Node) -> int:
    """Multiply-accumulates of a node, run on the meta device."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), to_meta)
    target: Any = node.target
    return count_macs(lambda: target(*args, **kwargs))


def to_meta(node: fx.Node) -> torch.Tensor:
    """A tensor of a node's shape that has no values."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
