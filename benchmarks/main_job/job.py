"""Generate the same pictures with the untransformed model and with schedules of reuse.

Print one table of speed, compile cost and PSNR; write its rows and a grid of the pictures.

Examples::

    python -m benchmarks                                     # the reference pipeline
    python -m benchmarks --model facebook/DiT-XL-2-256 --dtype float16 --device cuda
    python -m benchmarks --model ./my-dit --steps 20 --seeds 4
    python -m benchmarks --lowering eager --repeats 3        # needs no compiler
    python -m benchmarks --quick                             # does it run at all?
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.harness.contenders import FEWER, Workshop, line_up, list_schedules
from benchmarks.harness.machine import can_compile, describe_machine
from benchmarks.harness.macs import Macs, count_trajectories
from benchmarks.harness.options import Count, Lowering, quick_flag, run_command
from benchmarks.harness.pictures import draw_grid
from benchmarks.harness.pipelines import PipelineOptions, Task, load_pipeline, model_name
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import format_table, show
from benchmarks.harness.trials import Arena, Trial, compete
from benchmarks.main_job.rows import Row, Setting, make_rows
from benchmarks.main_job.table import COLUMNS, format_notes, show_speed
from dqar_fx import DqarError

QUICK = {"steps": 8, "seeds": 2, "repeats": 1, "lowering": "eager"}


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of the main job."""

    COMMAND = "benchmarks"
    QUICK = QUICK

    lowering: Lowering = "regional"
    """What is compiled."""
    steps: Count = 50
    """Denoising steps."""
    seeds: Count = 8
    """Number of pictures, in one batch; their seeds are 0, 1, 2, ..."""
    guidance: float = 1.5
    """Guidance scale."""
    repeats: Count = 5
    """Timed trajectories per row."""
    budget_s: Annotated[float, tyro.conf.arg(name="budget", metavar="SECONDS")] = 165.0
    """Begin no further repeat after this, once there are three."""
    out: Path = Path("results/main")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 1 if a contender failed, 2 for unusable input."""
    return run_command(Options, run, argv)


def run(options: Options) -> int:
    """Measure, print, write; the exit code."""
    deadline = time.perf_counter() + options.budget_s
    options = fall_back(options)
    pipe = load_pipeline(options)
    task = Task.of(pipe, options.seeds, options.guidance)
    arena = Arena(
        pipe, task, Workshop(pipe.transformer, options.lowering), device=options.device
    )
    trials = enter(arena, options)
    compete(arena, trials, repeats=options.repeats, deadline=deadline)
    rows = make_rows(trials, setting_of(options, task), describe_machine(options.device))
    print(format_table(COLUMNS, rows), format_notes(rows), sep="\n\n")
    write_rows(rows, options.out / "rows.jsonl")
    write_pictures(trials, rows, task, options.out / "pictures.png")
    print(f"\nwrote {options.out / 'rows.jsonl'} and {options.out / 'pictures.png'}")
    return 1 if any(row.error for row in rows) else 0


def fall_back(options: Options) -> Options:
    """The same options, without compilation if there is no compiler; says so."""
    if options.lowering == "eager" or can_compile(options.device):
        return options
    print("No C++ compiler was found, so nothing is compiled: all rows run in eager mode.\n")
    return replace(options, lowering="eager")


def enter(arena: Arena, options: Options) -> list[Trial]:
    """The contenders, each with its multiply-accumulates where these can be counted."""
    is_compiled = options.lowering != "eager"
    counts = count(arena, options.steps)
    if counts is None:
        lined_up = line_up(options.steps, fewer_steps=None, compiled=is_compiled)
        return [Trial(each, macs=None) for each in lined_up]
    by_name = dict(zip(list_schedules(options.steps), counts.trajectories, strict=True))
    fewer_steps = max(1, round(by_name[FEWER] / counts.untransformed_step))
    return [
        Trial(each, by_name.get(each.name, each.steps * counts.untransformed_step))
        for each in line_up(options.steps, fewer_steps=fewer_steps, compiled=is_compiled)
    ]


def count(arena: Arena, steps: int) -> Macs | None:
    """Multiply-accumulates of all schedules; None, with a word, if the model refuses."""
    print("counting MACs ...", file=sys.stderr)
    original = arena.workshop.original
    schedules = list(list_schedules(steps).values())
    try:
        return count_trajectories(original, arena.task.example_call(original), schedules)
    except DqarError as error:
        print(f"MACs were not counted, so there is no ceiling: {error}\n")
        return None


def setting_of(options: Options, task: Task) -> Setting:
    """What all rows of this run share."""
    is_eager = options.lowering == "eager"
    return Setting(
        model=model_name(options.model),
        dtype=options.dtype,
        lowering=options.lowering,
        guidance=options.guidance,
        seeds=task.seeds,
        labels=task.labels,
        batch=task.batch,
        base="untransformed eager" if is_eager else "untransformed compiled",
    )


def write_pictures(
    trials: Sequence[Trial], rows: Sequence[Row], task: Task, path: Path
) -> None:
    """Write the grid of pictures; failed contenders have no row in it."""
    pairs = zip(trials, rows, strict=True)
    shown = [(trial.images, row) for trial, row in pairs if trial.images is not None]
    if not shown:
        return
    draw_grid(
        [images for images, _ in shown],
        [label_row(row) for _, row in shown],
        [(name, f"seed {seed}") for name, seed in zip(task.names, task.seeds, strict=True)],
    ).save(path)


def label_row(row: Row) -> tuple[str, str]:
    """Two lines: who, and how fast and how near."""
    speed = show_speed(row).partition(" ")[0]
    return row.name, f"{speed}x, {show(row.psnr_db, '.1f')} dB"
