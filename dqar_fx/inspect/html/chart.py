"""The predicted time of each step as stacked bars, in units of a drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dqar_fx.costs.kernels import COST_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dqar_fx.costs.cost import Cost

WIDTH, HEIGHT = 12, 200
"""Width of a bar with its gap, and height of the highest bar, in units of the drawing."""
NUM_TICKS = 4


def draw_chart(steps: Sequence[Mapping[str, Cost] | None]) -> dict[str, Any]:
    """Draw the bars, ticks and kinds of a chart; costs of None are steps without a call."""
    known = [{} if costs is None else costs for costs in steps]
    kinds = [kind for kind in COST_KINDS if any(kind in c and c[kind].ms > 0 for c in known)]
    totals = [sum(costs[kind].ms for kind in kinds if kind in costs) for costs in known]
    top = max(totals, default=0.0) or 1.0
    return {
        "width": WIDTH * len(known),
        "height": HEIGHT,
        "kinds": kinds,
        "bars": [
            draw_bar(step, costs, kinds, top, total)
            for step, (costs, total) in enumerate(zip(known, totals, strict=True))
        ],
        "ticks": [
            {"y": HEIGHT - HEIGHT * part / NUM_TICKS, "ms": f"{top * part / NUM_TICKS:.3g}"}
            for part in range(NUM_TICKS + 1)
        ],
    }


def draw_bar(
    step: int, costs: Mapping[str, Cost], kinds: Sequence[str], top: float, total: float
) -> dict[str, Any]:
    """Draw one bar, its parts from the bottom up; ``top`` and ``total`` are milliseconds."""
    parts, y = [], float(HEIGHT)
    for kind in kinds:
        high = HEIGHT * costs[kind].ms / top if kind in costs else 0.0
        y -= high
        if high > 0:
            parts.append({"kind": kind, "y": f"{y:.2f}", "height": f"{high:.2f}"})
    told = ", ".join(f"{kind} {costs[kind].ms:.3f}" for kind in kinds if kind in costs)
    return {
        "x": step * WIDTH,
        "width": WIDTH - 2,
        "parts": parts,
        "told": f"step {step}: {total:.3f} ms ({told})",
    }
