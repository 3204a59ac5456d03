"""Figure: how fast the configurations of the ablation are, and how far their pictures."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from benchmarks.figures.rows import (
    NEAR_DB,
    Row,
    is_near,
    make_title,
    read_timed_rows,
    show_psnr,
)
from benchmarks.figures.studio import Studio
from benchmarks.figures.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    PALE,
    PAPER,
    SKY,
    Drawn,
    new_figure,
)

LOOKS = {
    "near": (BLUE, PAPER, f"reuses; pictures near the baseline's (PSNR {NEAR_DB} dB or more)"),
    "far": (SKY, INK, "reuses; pictures far from the baseline's"),
    "unknown": (PALE, INK, "reuses; pictures not compared"),
    "plain": (FAINT, PAPER, "untransformed model"),
}
"""Colour of a bar, of the text on it, and what they mean."""
KEPT = {"output": "outputs", "kv": "keys and values"}


def draw(studio: Studio) -> Drawn:
    """Draw the figure.

    Raises:
        RowsError: The ablation has not been run, or not timed.
    """
    timed = read_timed_rows(studio.options.ablation)
    figure = new_figure(make_title(timed), 11, 3.2 + 0.62 * len(timed))
    axes = figure.subplots()
    for number, row in enumerate(reversed(timed)):
        draw_bar(axes, number, row, is_base=row is timed[0])
    dress(axes, timed)
    mark_ceiling(axes, timed)
    looks = [look for look in LOOKS if any(look_of(row) == look for row in timed)]
    figure.legend(
        handles=[Patch(color=LOOKS[look][0], label=LOOKS[look][2]) for look in looks],
        loc="outside lower left",
        frameon=False,
    )
    return Drawn(figure, make_caption(timed))


def draw_bar(axes: Axes, y: int, row: Row, *, is_base: bool) -> None:
    """Draw one configuration."""
    speed, low, high = (float(row[f"speed_{name}"]) for name in ("median", "min", "max"))
    colour, ink, _ = LOOKS[look_of(row)]
    axes.barh(y, speed, height=0.62, color=colour, zorder=2)
    text = f"{speed:.2f}x"
    if not is_base:
        span = [[speed - low], [high - speed]]
        axes.errorbar(speed, y, xerr=span, color=INK, capsize=4, lw=1.4, zorder=4)
        text += f" ({low:.2f} to {high:.2f})"
    end = high
    if row.get("ceiling"):
        end = max(end, row["ceiling"])
        axes.plot([row["ceiling"]] * 2, [y - 0.4, y + 0.4], color=ORANGE, lw=3, zorder=3)
    axes.annotate(
        text, (end, y), xytext=(8, 0), textcoords="offset points", va="center", zorder=5
    )
    axes.annotate(
        "the pictures to compare with" if is_base else label_quality(row),
        (0, y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=ink,
        fontweight="bold",
        zorder=5,
    )


def look_of(row: Row) -> str:
    """How a configuration's bar looks."""
    if row["keep"] is None:
        return "plain"
    if row["psnr_db"] is None:
        return "unknown"
    return "near" if is_near(row) else "far"


def label_quality(row: Row) -> str:
    """What is written on a bar: the distance of its pictures."""
    if row["psnr_db"] is None:
        return "other noise: no PSNR" if row["keep"] is None else "no PSNR"
    return f"PSNR {show_psnr(row)}"


def dress(axes: Axes, timed: Sequence[Row]) -> None:
    """Labels, and the lines that all bars share."""
    names = [f"{row['name']}\n{describe(row, timed[0])}" for row in reversed(timed)]
    right = max(max(row["speed_max"], row.get("ceiling") or 0) for row in timed)
    axes.axvline(1, color=INK, lw=1, ls=":", zorder=1)
    axes.set_yticks(range(len(timed)), names, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("speed against the baseline (times; calls of the denoiser alone)")
    axes.set_xlim(0, right * 1.32)
    axes.set_ylim(-0.6, len(timed) - 0.2)
    axes.grid(axis="x", color=PALE, lw=0.6, zorder=0)


def describe(row: Row, base: Row) -> str:
    """How a configuration reuses, below its name."""
    if row["keep"] is None:
        return f"untransformed, {row['steps']} steps" if row is base else "untransformed"
    ratio = row.get("reuse_ratio")
    share = "" if ratio is None else f", {ratio:.0%} reused"
    return f"{KEPT.get(row['keep'], row['keep'])} in {row.get('cache')}{share}"


def mark_ceiling(axes: Axes, timed: Sequence[Row]) -> None:
    """Say at the first tick what it is."""
    marked = next((row for row in timed[1:] if row.get("ceiling")), None)
    if marked is None:
        return
    y = len(timed) - 1 - timed.index(marked)
    axes.annotate(
        "ceiling: the speed if time\nwere multiply-accumulates",
        xy=(marked["ceiling"], y + 0.4),
        xytext=(0.81, y + 0.75),
        textcoords=axes.get_yaxis_transform(),
        color=ORANGE,
        fontsize=10,
        va="center",
        arrowprops={"arrowstyle": "-", "color": ORANGE},
    )


def make_caption(timed: Sequence[Row]) -> str:
    """The paragraph below the figure."""
    first = timed[0]
    return (
        f"Speed of the ablation's configurations on {first.get('model')} "
        f"({first.get('device')}: {first.get('processor')}, {first.get('cores')} cores, "
        f"lowering {first.get('lowering')}). A bar is the median over "
        f"{max(row.get('repeats') or 0 for row in timed)} interleaved repeats of the time of "
        "the baseline by that of the configuration, its whisker the lowest and the highest; "
        "the baseline is the untransformed model. The orange tick is the ceiling: what the "
        "speed would be if time were multiply-accumulates. On each bar: peak signal-to-noise "
        "ratio of the pictures against the baseline's of the same seeds; higher is nearer, "
        f"and from {NEAR_DB} dB on differences are hard to see. Fewer steps draw other noise "
        "under DDPM, so that their pictures have no such number."
    )
