"""The table, made from rows, and the notes that explain it."""

from collections.abc import Sequence

from benchmarks.ablation.table import show_mean
from benchmarks.contenders.report import describe_sources, list_oddities
from benchmarks.harness import tables
from benchmarks.harness.tables import NOTHING, Column, show_megabytes, show_speed
from benchmarks.peers.rows import Row


def format_table(rows: Sequence[Row]) -> str:
    """The table of all rows; a failed one says so in the place of its speed."""
    if has_pictures(rows):
        frechet = rows[0].run.get("frechet_name") or "FD"
        quality = [
            Column("PSNR dB", "psnr_db", ".1f"),
            Column(frechet, "judged.pooled_frechet", ".1f"),
        ]
    else:
        quality = [Column("error", "relative_error", ".1e")]
    columns = (
        Column("row", "name"),
        Column("MACs", "macs_ratio", ".3f"),
        Column("graphs", "graphs"),
        Column("breaks", "breaks"),
        Column("recompiles", "recompiles"),
        Column("compile s", "compile_s", ".1f"),
        Column("step ms", "step_ms", ".2f"),
        Column("trajectory s", "trajectory_s", ".3f"),
        Column("speed (range)", show_speed),
        Column("peak MB, first / later", show_peaks),
        Column("cache MB", "cache_bytes", show_megabytes()),
        *quality,
    )
    return tables.format_table(columns, rows)


def has_pictures(rows: Sequence[Row]) -> bool:
    """Whether pictures were compared, and not latents."""
    return rows[0].run.get("geometry") is None


def show_peaks(row: Row) -> str:
    """Both peaks in megabytes."""
    peaks = (row.first_peak_bytes, row.later_peak_bytes)
    return " / ".join(map(show_megabytes(".0f"), peaks)) if any(peaks) else NOTHING


def format_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, and where they were measured."""
    run, base = rows[0].run, rows[0]
    repeats = max(row.repeats for row in rows)
    notes = [
        f"{run['model']}: {base.steps} steps of {run['scheduler_class']}, guidance "
        f"{run['guidance']:g}, {run['dtype']}, a batch of {run['samples']} pictures (twice as "
        "many samples in a call).",
        f"Each row is a process of its own with an empty Inductor cache, in which its "
        f"trajectories take turns with the unit's: the untransformed model, {run['unit']}. "
        f"speed: time of the unit's trajectory by that of the row soon after it, {repeats} "
        "repeats: median (lowest-highest). The row of the unit runs against itself: its range "
        "is the noise. trajectory s and step ms are medians of the row's own process.",
        "graphs, breaks: of the first trajectory. recompiles: graphs compiled later. compile "
        "s: the first trajectory less a later one, capture included. Fewer steps run the "
        "unit's graph.",
        "prepacked: linears take weights that are packed once. freezing: the same by "
        "Inductor, as constants of each graph.",
        "peak MB: the highest resident memory (on CUDA: allocated) above that before the row "
        "was built, up to the end of the first trajectory, where things are compiled, and in "
        "the second; the copy of the model that hooks need is not in it. cache MB: bytes "
        "that the cache holds at most after a step.",
        "MACs: multiply-accumulates by those of the full run, counted while the eager mode "
        "ran.",
        describe_quality(rows),
        "dqar_fx as ...: the branch table of that system's rule. FirstBlockCache and "
        "cache-dit's thresholds decide on the device while they run, and FasterCache "
        "extrapolates in a way of its own: no table of ours has their decisions.",
        describe_sources(rows),
    ]
    return notes + list_oddities(rows)


def describe_quality(rows: Sequence[Row]) -> str:
    """What is compared with what."""
    run = rows[0].run
    if has_pictures(rows):
        judged = next((row.judged for row in rows if row.judged), None)
        floors = judged.pooled_floors if judged else ()
        floor = f"; as many real ones have {show_mean(floors)}" if floors else ""
        compared = (
            "PSNR: against the pictures of the untransformed model in eager mode, of the "
            f"same seeds: {rows[0].pictures} of them."
        )
        if judged is None:
            return compared
        return (
            f"{compared} {run.get('frechet_name') or 'FD'}: distance of {run['images']} "
            f"pictures from real ones{floor}; of a setting one mode's pictures are judged, "
            "the others' differ by rounding."
        )
    return (
        f"{run['model']} has random weights: there are no pictures, and no FD. error: of the "
        "final latent against the untransformed model's in eager mode, relative. Every step "
        f"is run; there are {rows[0].steps} in the place of 50, which leaves the share that "
        "reuses as it is for tables of every second step, and makes it lower for rules with "
        "first steps of their own: the column MACs tells."
    )
