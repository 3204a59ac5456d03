"""Places of boxes, and the bounds and lanes of a diagram; all lengths in inches."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.figures.boxes import Key

LEVEL, COLUMN = 0.86, 1.12
"""Distance of boxes from centre to centre, in inches: down, and to the right."""
HEIGHT, WIDE, NARROW = 0.62, 2.3, 1.06
"""Of boxes, in inches: those that are alone at their level are wide."""
LANE = 0.16
"""Distance of lines that pass boxes at the side, in inches."""
SLOT_X, SLOT_WIDTH = 2.3, 1.2
"""Where slots stand, in inches from the middle, and how wide they are."""


@dataclass(frozen=True)
class Place:
    """A box's centre and size, in inches."""

    x: float
    y: float
    width: float
    height: float = HEIGHT

    @property
    def left(self) -> float:
        """Its left edge."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        """Its upper edge."""
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y - self.height / 2

    def nearest_x(self, other: "Place") -> float:
        """Where an arrow from or to another box touches it."""
        return min(max(other.x, self.left + LANE), self.right - LANE)


@dataclass(frozen=True)
class Layout:
    """Places by box, and the lane of each edge that passes boxes.

    Attributes:
        places: The same for every variant of a block.
        lanes: Number, from the boxes outwards, by edge.
    """

    places: Mapping[Key, Place]
    lanes: Mapping[tuple[Key, Key], int]

    @property
    def left(self) -> float:
        """Left of all, in inches, as are the other bounds."""
        return self._edge - LANE * (2 + max(self.lanes.values(), default=-1))

    @property
    def right(self) -> float:
        """Right of all."""
        return max(place.right for place in self.places.values()) + LANE / 2

    @property
    def top(self) -> float:
        """Above all."""
        return max(place.top for place in self.places.values()) + 0.05

    @property
    def bottom(self) -> float:
        """Below all."""
        return min(place.bottom for place in self.places.values()) - 0.05

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From bottom to top."""
        return self.top - self.bottom

    @property
    def _edge(self) -> float:
        return min(place.left for place in self.places.values())

    def lane_x(self, start: Key, end: Key) -> float:
        """Where the lane of an edge is."""
        return self._edge - LANE * (1 + self.lanes[start, end])
