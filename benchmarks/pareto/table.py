"""The table, made from rows, and the notes that explain it."""

import math
from collections.abc import Sequence

from tabulate import tabulate

from benchmarks.ablation.table import show_mean, show_range
from benchmarks.harness.tables import NOTHING, first_line, show
from benchmarks.pareto.rows import Row
from benchmarks.quality.judge import NUM_FLOORS


def format_table(rows: Sequence[Row]) -> str:
    """The table of all rows; a failed one says so in the place of its speed."""
    lpips = rows[0].run.get("lpips_name") or "LPIPS"
    headers = (
        "row",
        "MACs",
        "speed (range)",
        "step ms",
        "trajectory s",
        "saving in time",
        "PSNR dB",
        "SSIM",
        lpips,
        "graphs / breaks / later",
    )
    return make_table(headers, [format_row(row) for row in rows])


def make_table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with names at the left and numbers at the right."""
    return tabulate(
        lines,
        headers=headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", *("right",) * (len(headers) - 1)),
    )


def format_row(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    compiled = (row.graphs, row.breaks, row.recompiles)
    return (
        row.name,
        show(row.macs_ratio, ".3f"),
        show_speed(row),
        show(row.step_ms, ".2f"),
        show(row.trajectory_s, ".3f"),
        show(row.saving_in_time, ".0%"),
        show_psnr(row),
        show(row.ssim, ".4f"),
        show(row.lpips, ".4f"),
        " / ".join(map(str, compiled)) if any(compiled) else NOTHING,
    )


def show_speed(row: Row) -> str:
    """Speed with its range, or that the row failed."""
    if row.error is not None:
        return "failed"
    if row.speed_median is None:
        return NOTHING
    return f"{row.speed_median:.2f} ({row.speed_min:.2f}-{row.speed_max:.2f})"


def show_psnr(row: Row) -> str:
    """PSNR; ``inf`` for equal pictures."""
    return "inf" if row.psnr_db == math.inf else show(row.psnr_db, ".1f")


def format_judged(rows: Sequence[Row]) -> str | None:
    """The table of the rows that were judged against real pictures; None without one."""
    judged = [(row, row.quality) for row in rows if row.quality is not None]
    if not judged:
        return None
    frechet = rows[0].run.get("frechet_name") or "FD"
    images = judged[0][1].images
    group = images // max(1, len(judged[0][1].frechet))
    headers = (
        "row",
        "speed",
        f"PSNR dB, n={images}",
        f"{frechet}, n={group}",
        "floor",
        f"pooled, n={images}",
        "floor",
        "difference (range)",
        "agreement",
    )
    lines = [
        (
            row.name,
            show(row.speed_median, ".2f"),
            "inf" if quality.psnr_db == math.inf else show(quality.psnr_db, ".1f"),
            show_mean(quality.frechet),
            show_mean(quality.frechet_floors),
            show(quality.pooled_frechet, ".3f"),
            show_mean(quality.pooled_floors),
            show_range(row.frechet_differences),
            show(quality.agreement, ".3f"),
        )
        for row, quality in judged
    ]
    return make_table(headers, lines)


def format_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, and where they were measured."""
    run, base = rows[0].run, rows[0]
    repeats = max(row.repeats for row in rows)
    frechet = run.get("frechet_name") or "FD"
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
        f"PSNR, SSIM, {run.get('lpips_name') or 'LPIPS'}: against the pictures of the "
        f"untransformed model in eager mode, of the same seeds: {base.pictures} of them.",
        "graphs / breaks / later: graphs compiled and graph breaks in the first trajectory, "
        "graphs compiled later. Rivals run in eager mode, compiled as a whole with the cache "
        "on, and where their blocks are plain modules, block by block.",
        f"{frechet}: distance from real pictures, mean +- standard deviation over seed "
        "groups; pooled: of all pictures; floor: of as many real ones, over "
        f"{NUM_FLOORS} draws; difference: less that of the unit, group by group; agreement: "
        "share that a classifier takes for the class asked for.",
        describe_machine(rows),
    ]
    return notes + list_oddities(rows)


def describe_machine(rows: Sequence[Row]) -> str:
    """Where the rows were measured, and by which sources."""
    run, machine = rows[0].run, rows[0].machine
    commits = {str(row.machine["commit"])[:10] for row in rows if row.machine.get("commit")}
    return (
        f"{run['device']}: {run['processor']}, {run['cores']} cores, {run['threads']} "
        f"threads; torch {run['torch']}, diffusers {run['diffusers']}, cache-dit "
        f"{run['cache_dit'] or 'not installed'}, dqar_fx {machine.get('dqar_fx')}, commit "
        f"{', '.join(sorted(commits)) or 'unknown'}"
        f"{' with changes' if any(row.machine.get('dirty') for row in rows) else ''}."
    )


def list_oddities(rows: Sequence[Row]) -> list[str]:
    """Rows that failed, and caches that do nothing, each with the modes it is so in."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        text = f"failed: {first_line(row.error)}" if row.error else row.note
        if text:
            said.setdefault((row.setting, text), []).append(row.mode)
    return [f"{setting} ({', '.join(m)}) {text}" for (setting, text), m in said.items()]
