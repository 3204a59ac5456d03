"""Rows of the ablation, as the figure of speed reads them from disk, and what they say."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reference.errors import InputError

Row = Mapping[str, Any]
NEEDED = ("name", "steps", "keep", "speed_median", "speed_min", "speed_max", "psnr_db")
NEAR_DB = 30
"""PSNR from which on pictures are called near: usual for lossy compression is 30 to 50 dB."""


class RowsError(InputError):
    """There are no rows of an ablation to draw."""


def read_timed_rows(folder: Path) -> list[Row]:
    """The rows of an ablation that have a time; the first is the baseline.

    Raises:
        RowsError: They are missing or damaged, or nothing was timed.
    """
    rows = read_rows(folder)
    timed = [row for row in rows if row["speed_median"] is not None]
    if not timed or timed[0] is not rows[0]:
        raise RowsError(
            f"{folder / 'rows.jsonl'} has no times to draw bars of: run "
            f"python -m benchmarks.ablation --out {folder} without --no-time"
        )
    return timed


def read_rows(folder: Path) -> list[Row]:
    """The rows of an ablation.

    Raises:
        RowsError: They are missing or damaged.
    """
    path = folder / "rows.jsonl"
    command = f"python -m benchmarks.ablation --out {folder}"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise RowsError(
            f"{path} is not there, so that there are no bars of speed: make it with {command}"
        ) from None
    except (OSError, ValueError) as error:
        raise RowsError(f"{path} cannot be read ({error}): make it with {command}") from None
    if not rows or any(name not in row for row in rows for name in NEEDED):
        raise RowsError(f"{path} holds no rows of the ablation: make them with {command}")
    return rows


def psnr_of(row: Row) -> float:
    """PSNR in dB; minus infinity where it is unknown."""
    return -math.inf if row["psnr_db"] is None else float(row["psnr_db"])


def is_near(row: Row) -> bool:
    """Whether the pictures are near the baseline's."""
    return psnr_of(row) >= NEAR_DB


def show_psnr(row: Row) -> str:
    """PSNR with its unit."""
    return "equal" if psnr_of(row) == math.inf else f"{psnr_of(row):.1f} dB"


def make_title(timed: Sequence[Row]) -> str:
    """The finding: the fastest that reuses, and the fastest whose pictures stay near."""
    reusing = [row for row in timed if row["keep"] is not None]
    if not reusing:
        return "No configuration that reuses attention has been timed"
    best = max(reusing, key=lambda row: row["speed_median"])
    title = (
        f"{best['name']} is the fastest that reuses attention, {best['speed_median']:.2f}x as "
        "fast as the baseline"
    )
    if best["psnr_db"] is None:
        return title
    if is_near(best):
        return f"{title}, and its pictures stay near the baseline's (PSNR {show_psnr(best)})"
    title += f", but its pictures are far from the baseline's (PSNR {show_psnr(best)})"
    near = [row for row in reusing if is_near(row)]
    if not near:
        return f"{title}, and no other's are near"
    kept = max(near, key=lambda row: row["speed_median"])
    return (
        f"{title}; of those that stay near, {kept['name']} is the fastest "
        f"({kept['speed_median']:.2f}x, {show_psnr(kept)})"
    )
