"""The head of every figure: what is to be seen, and how to read it."""

import textwrap
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.harness.plots import DPI

HEAD_PAD, SPACING = 0.14, 1.3
"""Around the head, in inches; of its lines, in heights of a line."""


def new_figure(title: str, reading: str, width: float, height: float) -> Figure:
    """An empty figure under its head.

    Args:
        title: What is to be seen, in words; it is wrapped.
        reading: How to read it, for who sees nothing but the picture; it is wrapped.
        width: In inches.
        height: Below the head, in inches.
    """
    parts = (Part(title, 15, "bold", 0.62), Part(reading, 11, "normal", 0.55))
    room = width - 2 * HEAD_PAD
    total = height + sum(part.height(room) for part in parts)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, rect=(0, 0, 1, height / total))
    figure = Figure(figsize=(width, total), dpi=DPI, layout=layout)
    top = total
    for part in parts:
        figure.text(
            HEAD_PAD / width,
            (top - HEAD_PAD) / total,
            part.wrap(room),
            va="top",
            fontsize=part.points,
            fontweight=part.weight,
            linespacing=SPACING,
        )
        top -= part.height(room)
    return figure


@dataclass(frozen=True)
class Part:
    """A paragraph of the head.

    Attributes:
        text: In one line.
        points: Size of its letters.
        weight: Of its letters.
        letter: Mean width of a letter, in sizes.
    """

    text: str
    points: float
    weight: str
    letter: float

    def wrap(self, room: float) -> str:
        """In lines that fit into a width in inches."""
        return textwrap.fill(self.text, int(room * 72 / (self.letter * self.points)))

    def height(self, room: float) -> float:
        """In inches, with the space above it."""
        num_lines = self.wrap(room).count("\n") + 1
        return HEAD_PAD + num_lines * SPACING * self.points / 72
