"""Parts of a graph by path, ``first:stop``, and the levels of a UNet, which are such parts.

A slice holds what is computed from where a module is called first to where another one is:
``down_blocks.1:up_blocks.3`` is all of a UNet of four levels below the outermost one. What
blocks before it have made for blocks behind it, as the outermost level's skip connections,
passes it by. Skip connections that cross an end of it are refused.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING

from .graphs import ancestors, descendants, graph_inputs, is_computing, used_by_others
from .module_paths import is_inside, module_path, module_stack
from .vocabulary import NoMatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from torch import fx

    Entry = tuple[str, int]

SLICE = re.compile(r"(?P<first>\w+(?:\.\w+)*):(?P<stop>[^\W\d]\w*(?:\.\w+)*)")
"""Path of a slice: from one module to before another one."""
ENTRY = re.compile(r"(?P<owner>[^\W\d]\w*)\.(?P<number>\d+)")
"""Path of an entry of one of the model's own lists."""


def find_slice(nodes: Sequence[fx.Node], path: str) -> tuple[fx.Node, ...]:
    """What is computed between two modules, for what is behind it.

    Args:
        nodes: The computing nodes of a graph, in order.
        path: ``first:stop``.

    Raises:
        NoMatch: A module is not called, or not in this order, or what would be kept is not
            all that leaves the slice, or all that enters it; at the node that crosses its end.
    """
    first, _, stop = path.partition(":")
    begin = find_call(nodes, first, path)
    end = find_call(nodes, stop, path)
    if end <= begin:
        raise NoMatch(f"{path}: {stop} is called before {first}", nodes[end])
    while is_inside(stop, module_path(nodes[end - 1])) or not module_path(nodes[end - 1]):
        end -= 1  # what a module around the stop makes for it, such as a join with a skip
    between = set(nodes[begin:end])
    made = descendants((n for n in between if is_made_by(n, first)), between)
    outputs = {node for node in made if used_by_others(node, between)}
    passed_by = {n for n in between if n not in made and used_by_others(n, between)}
    needed = ancestors(outputs, between) - ancestors(passed_by, between)
    body = tuple(node for node in nodes[begin:end] if node in needed)
    if not body:
        raise NoMatch(f"{path}: nothing behind it reads what it computes", nodes[begin])
    refuse_crossing(body, outputs, path)
    return body


def find_call(nodes: Sequence[fx.Node], module: str, path: str) -> int:
    """The place of the first node that a module makes."""
    for place, node in enumerate(nodes):
        if is_made_by(node, module):
            return place
    raise NoMatch(f"{path}: no module {module} computes anything here", nodes[-1])


def is_made_by(node: fx.Node, module: str) -> bool:
    """Whether a module, or one inside of it, makes a node."""
    return any(path == module for _, path in module_stack(node))


def refuse_crossing(body: Sequence[fx.Node], outputs: AbstractSet[fx.Node], path: str) -> None:
    """Raise for a value that a block outside has made or reads, past the ends of a slice."""
    first, _, stop = path.partition(":")
    last = part_of(body[-1], stop)
    for node in body:
        if node in outputs and part_of(node, stop) != last:
            reader = next(user for user in node.users if user not in body)
            raise NoMatch(
                f"{path}: a skip connection leaves it, from {module_path(node)} to "
                f"{module_path(reader) or 'the model'}: let it end behind that",
                node,
            )
    for node in graph_inputs(body):
        readers = [user for user in node.users if user in outputs or user in body]
        is_of_block = is_computing(node) and ENTRY.match(module_path(node))
        if is_of_block and not any(is_made_by(reader, first) for reader in readers):
            raise NoMatch(
                f"{path}: a skip connection enters it, from {module_path(node)} to "
                f"{module_path(readers[0])}: let it end before that",
                node,
            )


def part_of(node: fx.Node, stop: str) -> str:
    """The part of the model, beside that in which a slice stops, that made a node."""
    own, other = module_path(node).split("."), stop.split(".")
    pairs = list(zip(own, other, strict=False))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    size = same + 1 + (len(own) > same + 1 and own[same + 1].isdigit())
    return ".".join(own[:size])


def find_levels(nodes: Sequence[fx.Node]) -> list[str]:
    """The slices that skip connections of the model pass by: the outermost first.

    That of level k goes from entry k of a list to before the entry of another list that
    reads what entries before k have made.
    """
    lists: dict[str, list[int]] = {}
    for node in nodes:
        entry = entry_of(node)
        if entry is not None and entry[1] not in lists.setdefault(entry[0], []):
            lists[entry[0]].append(entry[1])
    edges = find_edges(nodes)
    return [
        f"{down}.{k}:{up}.{stop}"
        for down, up in combinations(lists, 2)
        for k in lists[down][1:]
        for stop in level_ends(edges, (down, k), (up, lists[up][1:]))
        if is_slice(nodes, f"{down}.{k}:{up}.{stop}")
    ]


def level_ends(
    edges: AbstractSet[tuple[Entry, Entry]], start: Entry, ends: tuple[str, Sequence[int]]
) -> Iterator[int]:
    """Where skips from before ``start`` are read and none from behind it."""
    (down, k), (up, numbers) = start, ends
    skips = [(i, j) for (a, i), (b, j) in edges if (a, b) == (down, up)]
    for stop in numbers:
        behind = [i for i, j in skips if j >= stop]
        if behind and max(behind) < k:
            yield stop
            return


def is_slice(nodes: Sequence[fx.Node], path: str) -> bool:
    """Whether nothing crosses the ends of a slice."""
    try:
        find_slice(nodes, path)
    except NoMatch:
        return False
    return True


def find_edges(nodes: Sequence[fx.Node]) -> set[tuple[Entry, Entry]]:
    """Which entries of lists read what which others made, maybe through the model itself."""
    edges: set[tuple[Entry, Entry]] = set()
    origins: dict[fx.Node, frozenset[Entry]] = {}
    for node in nodes:
        entry, of_model = entry_of(node), not module_path(node)
        sources = [origins[n] for n in node.all_input_nodes if n in origins]
        given = frozenset[tuple[str, int]]().union(*sources)
        if entry is not None:
            edges |= {(source, entry) for source in given if source != entry}
        made = given if of_model else frozenset[tuple[str, int]]()
        origins[node] = made if entry is None else frozenset({entry})
    return edges


def entry_of(node: fx.Node) -> Entry | None:
    """The list of the model and the number in it of what made a node."""
    found = ENTRY.match(module_path(node))
    return (found["owner"], int(found["number"])) if found else None
