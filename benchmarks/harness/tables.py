"""The printed table, made from rows, and the notes that explain it."""

import math
from collections.abc import Sequence

from tabulate import tabulate

from benchmarks.main_job.rows import Row

HEADERS = (
    "schedule",
    "reuse",
    "rows",
    "graphs",
    "compile s",
    "step ms",
    "speed (range)",
    "ceiling",
    "cache MB",
    "PSNR dB",
)
NOTHING = "-"


def format_table(rows: Sequence[Row]) -> str:
    """The table; failed contenders say why in the place of their speed."""
    return tabulate(
        [format_row(row) for row in rows],
        headers=HEADERS,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", *("right",) * (len(HEADERS) - 1)),
    )


def format_row(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    return (
        row.name,
        show(row.reuse_ratio, ".3f"),
        show(row.distinct_rows, "d"),
        show(row.graphs or None, "d"),
        show(row.compile_s, ".1f"),
        show(row.step_ms_median, ".2f"),
        show_speed(row),
        show(row.ceiling, ".2f"),
        show(None if row.cache_bytes is None else row.cache_bytes / 1e6, ".2f"),
        show_psnr(row),
    )


def show(value: float | None, form: str) -> str:
    """A number, or a dash for none."""
    return NOTHING if value is None else format(value, form)


def show_speed(row: Row) -> str:
    """Speed with its range, or that the contender failed."""
    if row.error is not None:
        return "failed"
    if row.speed_median is None or row.name == row.setting.base:
        return show(row.speed_median, ".2f")
    return f"{row.speed_median:.2f} ({row.speed_min:.2f}-{row.speed_max:.2f})"


def show_psnr(row: Row) -> str:
    """PSNR; ``inf`` for equal pictures."""
    return "inf" if row.psnr_db == math.inf else show(row.psnr_db, ".1f")


def format_notes(rows: Sequence[Row]) -> str:
    """What the columns mean, and where they were measured."""
    setting, first = rows[0].setting, rows[0]
    repeats = max(row.repeats for row in rows)
    notes = [
        f"pictures {len(setting.seeds)}, steps {first.steps}, guidance {setting.guidance:g}, "
        f"{setting.dtype}, lowering {setting.lowering}, interleaved repeats {repeats}.",
        f"speed: against {setting.base}, repeat by repeat: median (lowest-highest).",
        "ceiling: the same if time were MACs. reuse: share of (step, site). rows: step kinds.",
        "compile s: first trajectory less a later one; Inductor's cache on disk is kept",
        "between contenders, which helps later ones. Times are of the denoiser's calls alone.",
        f"PSNR: against the pictures of {first.name}. {describe_graphs(rows)}",
        str(first.machine),
    ]
    failures = [f"{row.name} failed: {first_line(row.error)}" for row in rows if row.error]
    return "\n".join(notes + failures)


def describe_graphs(rows: Sequence[Row]) -> str:
    """Graph breaks and recompiles, by name where there are any."""
    broken = [
        f"{row.name}: {row.breaks} graph breaks, {row.recompiles} recompiles after warm-up"
        for row in rows
        if row.breaks or row.recompiles
    ]
    return f"{'; '.join(broken) or 'No graph break, no recompile after warm-up'}."


def first_line(text: str | None) -> str:
    """The first line of a text."""
    return (text or "").partition("\n")[0]
