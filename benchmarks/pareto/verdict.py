"""What the rows say: at each target speed, ours against fewer steps and against peers."""

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.contenders.rows import Row
from benchmarks.pareto.options import Options


def choose_judged(rows: Sequence[Row], options: Options) -> list[str]:
    """Names of the rows to judge: the base, and those asked for or nearest to the targets."""
    if not options.images or options.judge == ():
        return []
    if options.judge is not None:
        return list(dict.fromkeys((rows[0].name, *options.judge)))
    chosen = [rows[0].name]
    for family in dict.fromkeys(row.family for row in rows if row.kind != "base"):
        placed = [r for r in rows if r.family == family and r.is_placed and r.note is None]
        chosen += [find_nearest(placed, target).name for target in options.targets if placed]
    return list(dict.fromkeys(chosen))


def find_nearest(rows: Sequence[Row], speed: float) -> Row:
    """The row whose measured speed is nearest; of equally near ones the better."""
    return min(
        rows, key=lambda row: (abs((row.speed_median or 0) - speed), -(row.quality_db or 0))
    )


def find_best(rows: Sequence[Row], kind: str, speed: float) -> Row | None:
    """The row of a kind with the best PSNR, at this measured speed or above."""
    fast = [
        row
        for row in rows
        if row.kind == kind and row.is_placed and (row.speed_median or 0) >= speed
    ]
    return max(fast, key=lambda row: row.quality_db or 0, default=None)


def interpolate_fewer(rows: Sequence[Row], speed: float) -> float | None:
    """PSNR that fewer steps would have at a measured speed, between the two nearest ones.

    None outside of what was measured.
    """
    points = sorted(
        (row.speed_median, row.quality_db)
        for row in rows
        if row.kind == "fewer" and row.is_placed and row.quality_db != float("inf")
    )
    if not points or not points[0][0] <= speed <= points[-1][0]:
        return None
    speeds, decibels = zip(*points, strict=True)
    return float(np.interp(speed, speeds, decibels))


def format_verdict(rows: Sequence[Row], targets: Sequence[float]) -> list[str]:
    """A few lines per target."""
    return [line for target in targets for line in describe_target(rows, target)]


def describe_target(rows: Sequence[Row], target: float) -> Iterator[str]:
    """What the rows say at one speed."""
    ours = find_best(rows, "ours", target)
    if ours is None:
        yield f"At {target:g}x or faster: none of ours."
        return
    own_db, own_speed = ours.quality_db or 0.0, ours.speed_median or 0.0
    yield f"At {target:g}x or faster, ours: {own_db:.1f} dB ({ours.name}, {own_speed:.2f}x)."
    for where, speed in (("at that speed", own_speed), (f"at {target:g}x", target)):
        fewer_db = interpolate_fewer(rows, speed)
        between = "" if fewer_db is None else ", between the measured numbers of steps"
        yield f"- fewer steps {where}: {compare(own_db, fewer_db)}{between}."
    rivals = {
        "solver": "the best other solver",
        "peer": "the best peer",
        "theirs": "a peer's schedule by us",
    }
    for kind, what in rivals.items():
        best = find_best(rows, kind, target)
        if best is None and kind == "solver":
            continue  # they take part only where a folder of them is given
        named = "" if best is None else f" ({best.name}, {best.speed_median:.2f}x)"
        yield f"- {what}{named}: {compare(own_db, best.quality_db if best else None)}."


def compare(own_db: float, other_db: float | None) -> str:
    """A PSNR, and how much higher ours is."""
    if other_db is None:
        return "none as fast was measured"
    return f"{other_db:.1f} dB, ours {own_db - other_db:+.1f} dB"
