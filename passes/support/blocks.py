"""Where a model repeats itself: block paths, and runs of nodes that one block call made.

A block is the entry of a module list that holds an attention, or is one: the longest prefix
of the attention's module path that ends in a number, such as ``transformer_blocks.3`` for
``transformer_blocks.3.attn1``. A run is a maximal stretch of nodes, in execution order, that
one call of one block made; what lies between is a run without a block. Runs are contiguous,
so that cutting the graph at their ends is always legal.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING

from .attention_spellings import is_candidate
from .graphs import is_computing
from .module_paths import call_key, find_enclosing, module_path, module_stack

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from torch import fx

BLOCK = re.compile(r"(?:.*\.)?\d+(?=\.)|.*\.\d+$")


def find_blocks(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """Paths of the blocks that hold attention, in execution order."""
    paths = (module_path(node) for node in nodes if is_candidate(node))
    found = (BLOCK.match(path) for path in paths)
    return tuple(dict.fromkeys(match[0] for match in found if match))


def block_of(node: fx.Node, blocks: Collection[str]) -> str:
    """The block that made a node; empty for a node of none."""
    return find_enclosing(module_path(node), blocks)


def find_runs(
    nodes: Iterable[fx.Node], blocks: Collection[str]
) -> list[tuple[str, list[fx.Node]]]:
    """``(block path or empty, nodes)`` for each run of computing nodes, in order."""
    known, calls = frozenset(blocks), dict[str, tuple[str, str]]()

    def block_call(node: fx.Node) -> tuple[str, str]:
        """What `block_call_of` gives, which is the same for all nodes of one module call."""
        key = call_key(node)
        if key not in calls:
            calls[key] = block_call_of(node, known)
        return calls[key]

    owned = ((n, block_call(n)) for n in nodes if is_computing(n))
    grouped = groupby(owned, key=lambda pair: pair[1])
    return [(path, [node for node, _ in pairs]) for (path, _), pairs in grouped]


def block_call_of(node: fx.Node, blocks: Collection[str]) -> tuple[str, str]:
    """The block that made a node, and the key of its call, if the block itself was called."""
    path = block_of(node, blocks)
    keys = (key for key, each in module_stack(node) if path and each == path)
    return path, next(keys, "")


def find_siblings(runs: Iterable[tuple[str, list[fx.Node]]]) -> list[list[list[fx.Node]]]:
    """Runs of blocks, grouped by equal sequences of operators."""
    groups: dict[tuple[object, ...], list[list[fx.Node]]] = defaultdict(list)
    for path, run in runs:
        if path:
            groups[tuple(node.target for node in run)].append(run)
    return list(groups.values())
