"""The printed table, made from rows, and the notes that explain it."""

from collections.abc import Sequence

from benchmarks.harness import tables
from benchmarks.harness.tables import Column, list_failures, show, show_megabytes
from benchmarks.main_job.rows import Row


def show_speed(row: Row) -> str:
    """Speed with its range, or that the contender failed; the base has no range."""
    is_base = row.error is None and row.name == row.setting.base
    return show(row.speed_median, ".2f") if is_base else tables.show_speed(row)


COLUMNS = (
    Column("schedule", "name"),
    Column("reuse", "reuse_ratio", ".3f"),
    Column("rows", "distinct_rows"),
    Column("graphs", lambda row: row.graphs or None),
    Column("compile s", "compile_s", ".1f"),
    Column("step ms", "step_ms_median", ".2f"),
    Column("speed (range)", show_speed),
    Column("ceiling", "ceiling", ".2f"),
    Column("cache MB", "cache_bytes", show_megabytes()),
    Column("PSNR dB", "psnr_db", ".1f"),
)


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
    return "\n".join(notes + list_failures(rows))


def describe_graphs(rows: Sequence[Row]) -> str:
    """Graph breaks and recompiles, by name where there are any."""
    broken = [
        f"{row.name}: {row.breaks} graph breaks, {row.recompiles} recompiles after warm-up"
        for row in rows
        if row.breaks or row.recompiles
    ]
    return f"{'; '.join(broken) or 'No graph break, no recompile after warm-up'}."
