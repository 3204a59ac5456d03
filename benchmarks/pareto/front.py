"""The drawing: quality over measured speed, a line per family and a mark per rival."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

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
from benchmarks.pareto.rows import Row
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
"""Markers of rivals."""
LOW_DB, SLOW = 20.0, 0.9
"""What is worse or slower is not drawn, but named below."""


def draw(rows: Sequence[Row], targets: Sequence[float]) -> Drawn:
    """Draw the figure."""
    drawn = [row for row in rows if row.family.kind != "base" and is_drawn(row)]
    figure = new_figure(make_title(rows, targets), READING, 12, 6.6)
    axes = figure.subplots()
    draw_fewer(axes, [row for row in drawn if row.family.kind == "fewer"])
    draw_ours(axes, [row for row in drawn if row.family.kind == "ours"])
    draw_theirs(axes, [row for row in drawn if row.family.kind == "theirs"])
    draw_rivals(axes, list(find_fastest(drawn)))
    dress(axes, targets)
    if drawn:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)
    return Drawn(figure, make_caption(rows))


READING = (
    "Each mark is one way to generate the same pictures in less time. To the right is faster, "
    "upwards nearer to the pictures of the full run. What lies below the thick line is "
    "beaten by simply taking fewer steps."
)


def is_drawn(row: Row) -> bool:
    """Whether a row has a place in the figure."""
    if not row.is_placed or row.psnr_db == float("inf") or row.note is not None:
        return False
    return (row.psnr_db or 0) >= LOW_DB and (row.speed_median or 0) >= SLOW


def find_fastest(rows: Sequence[Row]) -> Iterator[Row]:
    """Of each rival's setting, the mode that is fastest here."""
    rivals = [row for row in rows if row.family.kind == "rival"]
    for setting in dict.fromkeys(row.setting for row in rivals):
        modes = (row for row in rivals if row.setting == setting)
        yield max(modes, key=lambda row: row.speed_median or 0)


def make_title(rows: Sequence[Row], targets: Sequence[float]) -> str:
    """What is to be seen at the first target."""
    target = targets[0]
    ours, rival = (find_best(rows, kind, target) for kind in ("ours", "rival"))
    fewer_db = interpolate_fewer(rows, target)
    parts = [
        (ours and ours.psnr_db, "dqar_fx"),
        (fewer_db, "fewer steps"),
        (rival and rival.psnr_db, "the best rival"),
    ]
    known = [f"{name} {value:.1f} dB" for value, name in parts if value]
    return f"At {target:g} times the speed: {', '.join(known) or 'nothing was measured'}"


def draw_fewer(axes: Axes, rows: Sequence[Row]) -> None:
    """The thick line that everything must beat, with the number of steps."""
    line = sorted(rows, key=lambda row: row.speed_median or 0)
    draw_line(axes, line, INK, "o", label="fewer steps, nothing reused", width=4)
    for row in line:
        place_text(axes, row, str(row.steps), (0, -15), INK)


def draw_ours(axes: Axes, rows: Sequence[Row]) -> None:
    """A line per family of ours."""
    families = dict.fromkeys(row.family for row in rows)
    for (colour, marker), family in zip(LOOKS, families, strict=False):
        members = [row for row in rows if row.family == family]
        line = sorted(members, key=lambda row: row.speed_median or 0)
        draw_line(axes, line, colour, marker, label=f"dqar_fx: {family.title}", width=1.8)


def draw_line(
    axes: Axes, rows: Sequence[Row], colour: str, marker: str, *, label: str, width: float
) -> None:
    """Rows of a family, joined."""
    if not rows:
        return
    speeds = [row.speed_median for row in rows]
    decibels = [row.psnr_db for row in rows]
    axes.plot(
        speeds, decibels, color=colour, marker=marker, lw=width, ms=7, label=label, zorder=3
    )


def draw_theirs(axes: Axes, rows: Sequence[Row]) -> None:
    """Rivals' schedules that dqar_fx runs: hollow marks."""
    if rows:
        axes.scatter(
            [row.speed_median for row in rows],
            [row.psnr_db for row in rows],
            s=44,
            facecolors="none",
            edgecolors=PURPLE,
            label=rows[0].family.title,
            zorder=4,
        )


def draw_rivals(axes: Axes, rows: Sequence[Row]) -> None:
    """A shape per rival, with its name at the best of its marks."""
    for tool, shape in SHAPES.items():
        marks = [row for row in rows if row.tool == tool]
        if not marks:
            continue
        axes.scatter(
            [row.speed_median for row in marks],
            [row.psnr_db for row in marks],
            s=60,
            color=FAINT,
            marker=shape,
            label=f"rival: {tool}",
            zorder=4,
        )
        best = max(marks, key=lambda row: row.psnr_db or 0)
        place_text(axes, best, tool, (7, 5), FAINT)


def place_text(axes: Axes, row: Row, text: str, offset: tuple[int, int], colour: str) -> None:
    """Text beside a mark."""
    axes.annotate(
        text,
        (row.speed_median or 0, row.psnr_db or 0),
        xytext=offset,
        textcoords="offset points",
        ha="center" if offset[0] == 0 else "left",
        fontsize=9,
        color=colour,
        bbox={"boxstyle": "round,pad=0.08", "fc": PAPER, "ec": "none", "alpha": 0.75},
        zorder=5,
    )


def dress(axes: Axes, targets: Sequence[float]) -> None:
    """Labels, a grid, and the speeds of the comparison."""
    for target in targets:
        axes.axvline(target, color=FAINT, lw=1, ls=":", zorder=1)
    axes.set_xlabel("measured speed of a whole trajectory (times the compiled full run)")
    axes.set_ylabel("PSNR against the full run's pictures (dB)")
    axes.grid(color=PALE, lw=0.6, zorder=0)
    axes.set_axisbelow(True)


def make_caption(rows: Sequence[Row]) -> str:
    """What is not drawn, and why."""
    drawn = {row.setting for row in rows if is_drawn(row)}
    working = (row for row in rows if row.family.kind != "base" and row.is_placed)
    left_out = dict.fromkeys(
        row.setting for row in working if row.note is None and row.setting not in drawn
    )
    return (
        "Of each rival's setting the fastest mode is drawn (eager, compiled as a whole, or by "
        f"block). Not drawn, since they have less than {LOW_DB:g} dB or run at less than "
        f"{SLOW:g} times the speed in all modes: {', '.join(left_out) or 'none'}."
    )
