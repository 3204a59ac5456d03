"""Where the boxes of a block stand: one below the other along the data, slots at the side."""

from collections.abc import Iterable, Mapping, Sequence

import networkx as nx  # type: ignore[import-untyped]  # it has no types of its own

from benchmarks.figures.boxes import CONDITIONING, SLOT, Key, Variant
from benchmarks.figures.places import (
    COLUMN,
    LEVEL,
    NARROW,
    SLOT_WIDTH,
    SLOT_X,
    WIDE,
    Layout,
    Place,
)


def lay_out(variants: Sequence[Variant]) -> Layout:
    """One layout for all variants, so that a box stands where it stood before."""
    graph = nx.DiGraph()
    for variant in variants:
        graph.add_edges_from(edge for edge in variant.edges if is_flow(edge))
    order = {key: number for number, key in enumerate(variants[0].boxes)}
    places: dict[Key, Place] = {}
    levels: dict[Key, int] = {}
    for level, keys in enumerate(nx.topological_generations(graph)):
        row = sorted(keys, key=lambda key: order.get(key, len(order)))
        places |= place_row(row, level)
        levels |= dict.fromkeys(row, level)
    spans = {edge: (levels[edge[0]], levels[edge[1]]) for edge in graph.edges}
    passing = {edge: span for edge, span in spans.items() if span[1] - span[0] > 1}
    return Layout(places | place_slots(variants, places), assign_lanes(passing))


def is_flow(edge: tuple[Key, Key]) -> bool:
    """Whether an edge leads from box to box, rather than from or to the side."""
    return not {SLOT, CONDITIONING} & {name for name, _ in edge}


def place_row(keys: Sequence[Key], level: int) -> dict[Key, Place]:
    """Boxes of one level stand side by side around the middle."""
    width, middle = WIDE if len(keys) == 1 else NARROW, (len(keys) - 1) / 2
    return {
        key: Place((column - middle) * COLUMN, -level * LEVEL, width)
        for column, key in enumerate(keys)
    }


def place_slots(variants: Iterable[Variant], places: Mapping[Key, Place]) -> dict[Key, Place]:
    """Slots stand beside the box that writes them."""
    edges = (edge for variant in variants for edge in variant.edges)
    return {
        slot: Place(SLOT_X, places[writer].y, SLOT_WIDTH)
        for writer, slot in edges
        if slot[0] == SLOT and writer in places
    }


def assign_lanes(
    spans: Mapping[tuple[Key, Key], tuple[int, int]],
) -> dict[tuple[Key, Key], int]:
    """The innermost lane for each edge in which it meets no other; short ones first."""
    lanes: dict[tuple[Key, Key], int] = {}
    for edge, (start, end) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        taken = {
            lanes[other]
            for other in lanes
            if spans[other][0] < end and start < spans[other][1]
        }
        lanes[edge] = next(lane for lane in range(len(spans)) if lane not in taken)
    return lanes
