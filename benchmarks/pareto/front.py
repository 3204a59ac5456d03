"""The drawing: quality over measured speed, a line per family and a mark per peer."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes

from benchmarks.contenders.rows import Row
from benchmarks.figures.head import new_figure
from benchmarks.harness.plots import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    PALE,
    PAPER,
    SAND,
    SKY,
    Drawn,
)
from benchmarks.pareto.verdict import find_best, interpolate_fewer

GREEN, PURPLE = "#009e73", "#cc79a7"
LOOKS = ((BLUE, "o"), (GREEN, "s"), (ORANGE, "^"), (SKY, "v"), (SAND, "D"), (PURPLE, "P"))
"""Colour and marker of our families, in order: told apart by either."""
SHAPES = {
    "PAB": "<",
    "FasterCache": ">",
    "FirstBlockCache": "p",
    "TaylorSeer": "*",
    "MagCache": "X",
    "SeaCache": "h",
    "cache-dit": "d",
}
"""Markers of peers."""
HOLLOW = ("o", "s")
"""Markers of peers' schedules that we run, a family each."""
LOW_DB, SLOW = 20.0, 0.9
"""What is worse or slower is not drawn, but named below."""
READING = (
    "Each mark is one way to generate the same pictures in less time. To the right is faster, "
    "upwards nearer to the pictures of the full run. What lies below the thick line is "
    "beaten by simply taking fewer steps."
)


def draw(rows: Sequence[Row], targets: Sequence[float]) -> Drawn:
    """Draw the figure."""
    drawn = [row for row in rows if row.kind != "base" and is_drawn(row)]
    drawn.sort(key=lambda row: row.speed_median or 0)
    figure = new_figure(make_title(rows, targets), READING, 12, 6.6)
    axes = figure.subplots()
    draw_lines(axes, drawn)
    draw_marks(axes, drawn)
    for target in targets:
        axes.axvline(target, color=FAINT, lw=1, ls=":", zorder=1)
    axes.set_xlabel("measured speed of a whole trajectory (times the compiled full run)")
    whose = "converged" if any(row.converged_db for row in rows) else "the full run's"
    axes.set_ylabel(f"PSNR against {whose} pictures (dB)")
    axes.grid(color=PALE, lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    if drawn:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)
    return Drawn(figure, make_caption(rows))


def is_drawn(row: Row) -> bool:
    """Whether a row has a place in the figure."""
    if not row.is_placed or row.quality_db == float("inf") or row.note is not None:
        return False
    return (row.quality_db or 0) >= LOW_DB and (row.speed_median or 0) >= SLOW


def make_title(rows: Sequence[Row], targets: Sequence[float]) -> str:
    """What is to be seen at the first target."""
    target = targets[0]
    ours, peer = (find_best(rows, kind, target) for kind in ("ours", "peer"))
    parts = [
        (ours and ours.quality_db, "dqar_fx"),
        (interpolate_fewer(rows, target), "fewer steps"),
        (peer and peer.quality_db, "the best peer"),
    ]
    known = [f"{name} {value:.1f} dB" for value, name in parts if value]
    return f"At {target:g} times the speed: {', '.join(known) or 'nothing was measured'}"


def draw_lines(axes: Axes, rows: Sequence[Row]) -> None:
    """The thick line that everything must beat, with its steps, and one per family of ours."""
    looks = {"fewer steps, nothing reused": (INK, "o", 4.0)}
    lines = {"fewer steps, nothing reused": [row for row in rows if row.kind == "fewer"]}
    families = dict.fromkeys(row.family for row in rows if row.kind == "ours")
    for (colour, marker), family in zip(LOOKS, families, strict=False):
        looks[f"dqar_fx: {family}"] = (colour, marker, 1.8)
        lines[f"dqar_fx: {family}"] = [row for row in rows if row.family == family]
    for label, members in lines.items():
        if members:
            colour, marker, width = looks[label]
            style: Any = {"color": colour, "marker": marker, "lw": width, "ms": 7}
            axes.plot(*find_places(members), label=label, zorder=3, **style)
    for row in rows:
        if row.kind == "fewer":
            place_text(axes, row, str(row.steps), (0, -15), INK)


def draw_marks(axes: Axes, rows: Sequence[Row]) -> None:
    """Hollow marks for peers' schedules, a shape per peer with its name at the best."""
    theirs = [row for row in rows if row.kind == "theirs"]
    families = dict.fromkeys(row.family for row in theirs)
    for marker, family in zip(HOLLOW, families, strict=False):
        hollow: Any = {"s": 44, "facecolors": "none", "edgecolors": PURPLE, "marker": marker}
        own = [row for row in theirs if row.family == family]
        axes.scatter(*find_places(own), label=family, zorder=4, **hollow)
    fastest = list(find_fastest(rows))
    for tool, shape in SHAPES.items():
        marks = [row for row in fastest if row.tool == tool]
        if marks:
            solid: Any = {"s": 60, "color": FAINT, "marker": shape}
            axes.scatter(*find_places(marks), label=f"peer: {tool}", zorder=4, **solid)
            best = max(marks, key=lambda row: row.quality_db or 0)
            place_text(axes, best, tool, (7, 5), FAINT)


def find_fastest(rows: Sequence[Row]) -> Iterator[Row]:
    """Of each peer's setting, the mode that is fastest here."""
    peers = [row for row in rows if row.kind == "peer"]
    for setting in dict.fromkeys(row.setting for row in peers):
        modes = (row for row in peers if row.setting == setting)
        yield max(modes, key=lambda row: row.speed_median or 0)


def find_places(rows: Sequence[Row]) -> tuple[list[Any], list[Any]]:
    """Speeds and decibels."""
    return [row.speed_median for row in rows], [row.quality_db for row in rows]


def place_text(axes: Axes, row: Row, text: str, offset: tuple[int, int], colour: str) -> None:
    """Text beside a mark."""
    axes.annotate(
        text,
        (row.speed_median or 0, row.quality_db or 0),
        xytext=offset,
        textcoords="offset points",
        ha="center" if offset[0] == 0 else "left",
        fontsize=9,
        color=colour,
        bbox={"boxstyle": "round,pad=0.08", "fc": PAPER, "ec": "none", "alpha": 0.75},
        zorder=5,
    )


def make_caption(rows: Sequence[Row]) -> str:
    """What is not drawn, and why."""
    drawn = {row.setting for row in rows if is_drawn(row)}
    working = (row for row in rows if row.kind != "base" and row.is_placed)
    left_out = dict.fromkeys(
        row.setting for row in working if row.note is None and row.setting not in drawn
    )
    return (
        "Of each peer's setting the fastest mode is drawn (eager, compiled as a whole, or by "
        f"block). Not drawn, since they have less than {LOW_DB:g} dB or run at less than "
        f"{SLOW:g} times the speed in all modes: {', '.join(left_out) or 'none'}."
    )
