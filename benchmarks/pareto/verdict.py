"""What the rows say: at each target speed, ours against fewer steps and against rivals."""

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.pareto.rows import Row


def find_best(rows: Sequence[Row], kind: str, speed: float) -> Row | None:
    """The row of a kind with the best PSNR, at this measured speed or above."""
    fast = [
        row
        for row in rows
        if row.family.kind == kind and row.is_placed and (row.speed_median or 0) >= speed
    ]
    return max(fast, key=lambda row: row.psnr_db or 0, default=None)


def interpolate_fewer(rows: Sequence[Row], speed: float) -> float | None:
    """PSNR that fewer steps would have at a measured speed, between the two nearest ones.

    None outside of what was measured.
    """
    points = sorted(
        (row.speed_median, row.psnr_db)
        for row in rows
        if row.family.kind == "fewer" and row.is_placed and row.psnr_db != float("inf")
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
    own_db, own_speed = ours.psnr_db or 0.0, ours.speed_median or 0.0
    yield f"At {target:g}x or faster, ours: {own_db:.1f} dB ({ours.name}, {own_speed:.2f}x)."
    for where, speed in (("at that speed", own_speed), (f"at {target:g}x", target)):
        fewer_db = interpolate_fewer(rows, speed)
        yield (
            f"- fewer steps {where}: {compare(own_db, fewer_db)}"
            f"{'' if fewer_db is None else ', between the measured numbers of steps'}."
        )
    for kind, what in (
        ("rival", "the best rival"),
        ("theirs", "a rival's schedule by us"),
    ):
        best = find_best(rows, kind, target)
        named = "" if best is None else f" ({best.name}, {best.speed_median:.2f}x)"
        yield f"- {what}{named}: {compare(own_db, best.psnr_db if best else None)}."


def compare(own_db: float, other_db: float | None) -> str:
    """A PSNR, and how much higher ours is."""
    if other_db is None:
        return "none as fast was measured"
    return f"{other_db:.1f} dB, ours {own_db - other_db:+.1f} dB"
