"""Where the boxes of a block stand: one below the other along the data, slots at the side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx  # type: ignore[import-untyped]  # it has no types of its own

from benchmarks.figures.boxes import CONDITIONING, SLOT, Key, Variant

LEVEL, COLUMN = 0.86, 1.22
"""Distance of boxes from centre to centre, in inches: down, and to the right."""
HEIGHT, WIDE, NARROW = 0.62, 2.02, 1.14
"""Of boxes, in inches: those that are alone at their level are wide."""
LANE = 0.16
"""Distance of lines that pass boxes at the side, in inches."""
SIDE_X = 1.78
"""Where slots stand, in inches from the middle."""


@dataclass(frozen=True)
class Place:
    """A box's centre and width, in inches."""

    x: float
    y: float
    width: float

    @property
    def left(self) -> float:
        """Its left edge."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width / 2


@dataclass(frozen=True)
class Layout:
    """Places by box, and the lane of each edge that passes boxes.

    Attributes:
        places: The same for every variant of a block.
        lanes: Number, from the boxes outwards, by edge.
        num_levels: Boxes from top to bottom.
    """

    places: Mapping[Key, Place]
    lanes: Mapping[tuple[Key, Key], int]
    num_levels: int

    @property
    def left(self) -> float:
        """Where the outermost lane is, in inches."""
        return self._edge - LANE * (2 + max(self.lanes.values(), default=-1))

    @property
    def _edge(self) -> float:
        return min(place.left for place in self.places.values())

    def lane_x(self, start: Key, end: Key) -> float:
        """Where the lane of an edge is, in inches."""
        return self._edge - LANE * (1 + self.lanes[start, end])


def lay_out(variants: Sequence[Variant]) -> Layout:
    """One layout for all variants, so that a box stands where it stood before."""
    graph = nx.DiGraph()
    for variant in variants:
        flowing = [e for e in variant.edges if not {SLOT, CONDITIONING} & {n for n, _ in e}]
        graph.add_edges_from(flowing)
    levels = [list(each) for each in nx.topological_generations(graph)]
    order = {key: i for i, key in enumerate(variants[0].boxes)}
    places: dict[Key, Place] = {}
    for number, keys in enumerate(levels):
        width = WIDE if len(keys) == 1 else NARROW
        for column, key in enumerate(sorted(keys, key=lambda k: order.get(k, len(order)))):
            x = (column - (len(keys) - 1) / 2) * COLUMN
            places[key] = Place(x, -number * LEVEL, width)
    places |= place_slots(variants, places)
    level_of = {key: number for number, keys in enumerate(levels) for key in keys}
    passing = [e for e in graph.edges if level_of[e[1]] - level_of[e[0]] > 1]
    spans = {e: (level_of[e[0]], level_of[e[1]]) for e in passing}
    return Layout(places, assign_lanes(spans), len(levels))


def place_slots(variants: Iterable[Variant], places: Mapping[Key, Place]) -> dict[Key, Place]:
    """Slots stand beside the box that writes them."""
    edges = (edge for variant in variants for edge in variant.edges)
    return {
        slot: Place(SIDE_X, places[writer].y, NARROW * 0.9)
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
