"""Names of configurations, and what they do in a few words."""

from typing import Any

from matplotlib.axes import Axes

from benchmarks.harness.plots import FAINT

KEPT = {"output": "outputs", "kv": "keys and values"}
READING = (
    "Below a name: what is kept of each attention and in which numbers, the share of "
    "attentions that reuse it instead of computing, and how old it gets."
)


def describe_reuse(
    keep: str, cache: str, ratio: float | None, oldest: int | None
) -> list[str]:
    """What a configuration does, in parts.

    Args:
        keep: What is kept of each attention.
        cache: The format in which it is kept.
        ratio: Share of cells that reuse; None where it is unknown.
        oldest: Age of the oldest output that is reused, in steps; None where it is unknown.
    """
    parts = [f"{KEPT.get(keep, keep)} in {cache}"]
    parts += [] if ratio is None else [f"{ratio:.0%} reused"]
    unit = "step" if oldest == 1 else "steps"
    parts += [] if oldest is None else [f"up to {oldest} {unit} old"]
    return parts


def name_row(
    axes: Axes, point: tuple[float, float], name: str, detail: str, place: Any
) -> None:
    """Write a bold name, and what it means below, to the left of a point.

    Args:
        axes: Beside which.
        point: Where the text ends.
        name: One line.
        detail: One line or several.
        place: The coordinates of the point.
    """
    options: Any = {"xycoords": place, "textcoords": "offset points", "ha": "right"}
    up = 6.5 * (detail.count("\n") + 1)
    axes.annotate(name, point, (-8, up), va="center", fontweight="bold", **options)
    small: Any = {"fontsize": 9.5, "color": FAINT}
    axes.annotate(detail, point, (-8, up - 7), va="top", **small, **options)
