"""Rows of the ablation, as the figure of speed reads them from disk, in words."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures.naming import describe_reuse
from benchmarks.harness.errors import InputError
from benchmarks.harness.plots import NEAR_DB

Row = Mapping[str, Any]
NEEDED = ("name", "steps", "keep", "speed_median", "speed_min", "speed_max", "psnr_db")


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


def speed_of(row: Row) -> float:
    """Median speed against the baseline."""
    return float(row["speed_median"])


def psnr_of(row: Row) -> float:
    """PSNR in dB; minus infinity where it is unknown."""
    return -math.inf if row["psnr_db"] is None else float(row["psnr_db"])


def is_near(row: Row) -> bool:
    """Whether the pictures are near the baseline's."""
    return psnr_of(row) >= NEAR_DB


def show_psnr(row: Row) -> str:
    """PSNR with its unit."""
    return "equal" if psnr_of(row) == math.inf else f"{psnr_of(row):.1f} dB"


def label_quality(row: Row) -> str:
    """The distance of a row's pictures, or why there is none."""
    if row["psnr_db"] is not None:
        return show_psnr(row)
    return "none (other noise)" if row["keep"] is None else "not measured"


def describe(row: Row) -> str:
    """What a configuration does."""
    if row["keep"] is None:
        return f"untransformed model, {row['steps']} steps"
    oldest = oldest_of(row["schedule"]) if row.get("schedule") else None
    parts = describe_reuse(row["keep"], str(row.get("cache")), row.get("reuse_ratio"), oldest)
    return ", ".join(parts)


def oldest_of(schedule: str) -> int:
    """Age of the oldest output that a schedule reuses, written out, in steps."""
    return max(map(len, re.findall("R+", schedule)), default=0)
