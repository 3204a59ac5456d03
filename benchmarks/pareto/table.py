"""The tables, made from rows, and the notes that explain them."""

from collections.abc import Sequence

from benchmarks.ablation.table import show_mean, show_range
from benchmarks.contenders.report import describe_sources, list_oddities
from benchmarks.contenders.rows import Row
from benchmarks.harness import tables
from benchmarks.harness.tables import NOTHING, Column, show_speed
from benchmarks.quality.judge import NUM_FLOORS


def format_table(rows: Sequence[Row]) -> str:
    """The table of all rows; a failed one says so in the place of its speed."""
    columns = (
        Column("row", "name"),
        Column("MACs", "macs_ratio", ".3f"),
        Column("speed (range)", show_speed),
        Column("step ms", "step_ms", ".2f"),
        Column("trajectory s", "trajectory_s", ".3f"),
        Column("saving in time", "saving_in_time", ".0%"),
        *(
            [Column("to converged, dB", "converged_db", ".1f")]
            if any(row.converged_db is not None for row in rows)
            else []
        ),
        Column("PSNR dB", "psnr_db", ".1f"),
        Column("SSIM", "ssim", ".4f"),
        Column(rows[0].run.get("lpips_name") or "LPIPS", "lpips", ".4f"),
        *list_counts(rows),
        Column("graphs / breaks / later", show_compiled),
    )
    return tables.format_table(columns, rows)


def list_counts(rows: Sequence[Row]) -> list[Column]:
    """Columns of what some rows have: evaluations beside steps, and trials of a search."""
    is_apart = any(row.evaluations not in (None, row.steps) for row in rows)
    is_searched = any(row.trials is not None for row in rows)
    apart = [Column("steps", "steps"), Column("evaluations", "evaluations")]
    return [*apart * is_apart, *[Column("trials", "trials")] * is_searched]


def show_compiled(row: Row) -> str:
    """Graphs, graph breaks and later graphs; nothing for none at all."""
    counts = (row.graphs, row.breaks, row.recompiles)
    return " / ".join(map(str, counts)) if any(counts) else NOTHING


def format_judged(rows: Sequence[Row]) -> str | None:
    """The table of the rows that were judged against real pictures; None without one."""
    judged = [row for row in rows if row.judged is not None]
    if not judged:
        return None
    quality = judged[0].judged
    assert quality is not None
    images, group = quality.images, quality.images // max(1, len(quality.frechet))
    columns = (
        Column("row", "name"),
        Column("speed", "speed_median", ".2f"),
        Column(f"PSNR dB, n={images}", "judged.psnr_db", ".1f"),
        Column(f"{name_frechet(rows)}, n={group}", "judged.frechet", show_mean),
        Column("floor", "judged.frechet_floors", show_mean),
        Column(f"pooled, n={images}", "judged.pooled_frechet", ".3f"),
        Column("floor", "judged.pooled_floors", show_mean),
        Column("difference (range)", "frechet_differences", show_range),
        Column("agreement", "judged.agreement", ".3f"),
    )
    return tables.format_table(columns, judged)


def name_frechet(rows: Sequence[Row]) -> str:
    """What the distance from real pictures is called."""
    name: str = rows[0].run.get("frechet_name") or "FD"
    return name


def describe_teacher(rows: Sequence[Row]) -> list[str]:
    """What the distance to converged pictures is, where there is a teacher."""
    names = [row.setting for row in rows if row.kind == "teacher"]
    return [f"to converged: PSNR against the pictures of {name}" for name in names]


def describe_searches(rows: Sequence[Row]) -> list[str]:
    """What the trials of a search are, where there is one."""
    if all(row.trials is None for row in rows):
        return []
    return ["trials: different schedules whose pictures a search has looked at before."]


def format_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, and where they were measured."""
    run, base = rows[0].run, rows[0]
    repeats = max(row.repeats for row in rows)
    notes = [
        f"{run['model']}: {base.steps} steps of {run['scheduler_class']}, guidance "
        f"{run['guidance']:g}, {run['dtype']}, a batch of {run['samples']} pictures; the unit "
        f"is {base.name}.",
        "speed: time of the unit's trajectory by that of the row soon after it, in one "
        f"process, {repeats} repeats in rotating order: median (lowest-highest). A trajectory "
        "is timed from the first call of the denoiser to the end of the last, scheduler and "
        "guidance included.",
        "MACs: multiply-accumulates by those of the full run, counted while it ran. saving in "
        "time: share of the saved MACs that is saved as time, (1 - 1/speed) / (1 - MACs).",
        *describe_teacher(rows),
        f"PSNR, SSIM, {run.get('lpips_name') or 'LPIPS'}: against the pictures of the "
        f"untransformed model in eager mode, of the same seeds: {base.pictures} of them.",
        "graphs / breaks / later: graphs compiled and graph breaks in the first trajectory, "
        "graphs compiled later. Peers run in eager mode, compiled as a whole with the cache "
        "on, and where their blocks are plain modules, block by block.",
        f"{name_frechet(rows)}: distance from real pictures, mean +- standard deviation over "
        "seed groups; pooled: of all pictures; floor: of as many real ones, over "
        f"{NUM_FLOORS} draws; difference: less that of the unit, group by group; agreement: "
        "share that a classifier takes for the class asked for.",
        *describe_searches(rows),
        describe_sources(rows),
    ]
    return notes + list_oddities(rows)
