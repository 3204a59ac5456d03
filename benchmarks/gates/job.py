"""Calibrate a pipeline, fit the learned policy, and let gates decide, at one reuse ratio.

By signal-to-noise ratio, by attention entropy, by the policy, and combined with schedules;
each with the threshold at which it reuses as much as the others. Print their tables and one
comparison, in eager mode.

Examples::

    python -m benchmarks.gates                                  # the reference pipeline
    python -m benchmarks.gates --reuse 0.6                      # at another reuse ratio
    python -m benchmarks.gates --calibration my-calibration     # read it there, or write it
    python -m benchmarks.gates --quick --out results/quick      # does it run at all?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks.ablation.options import SCHEDULERS
from benchmarks.ablation.protocol import use_scheduler
from benchmarks.gates.calibrated import CalibratedOptions, obtain_calibration
from benchmarks.gates.facts import measure
from benchmarks.gates.lineup import POLICY, list_families, list_rivals
from benchmarks.gates.report import (
    COLUMNS,
    format_entropy,
    format_gate,
    format_policy,
    format_verdict,
)
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import at_least, number, one_of, quick_flag, run_command
from benchmarks.harness.pipelines import Task, load_pipeline, model_name
from benchmarks.harness.rows import write_rows
from benchmarks.harness.store import file_name
from benchmarks.harness.tables import format_table, wrap_notes
from dqar_fx import Policy

OTHER_SEEDS = 10_000
"""Added to the seed of the calibration: its noise is not that of the comparison."""
QUICK = {"steps": 8, "samples": 1}
SHARE = number(float, lambda value: 0 < value < 1, "a number between 0 and 1")


@dataclass(frozen=True)
class Options(CalibratedOptions):
    """Options of the comparison of gates."""

    COMMAND = "benchmarks.gates"
    QUICK = QUICK

    scheduler: Annotated[str, one_of(SCHEDULERS)] = "keep"
    """The pipeline's own, or ddpm."""
    steps: Annotated[int, at_least(6)] = 50
    """Denoising steps."""
    guidance: float = 1.5
    """Guidance scale."""
    seed: Annotated[int, at_least(0)] = 0
    """Of the calibration; the pictures that are compared have others."""
    reuse: Annotated[float, SHARE] = 0.5
    """Share of cells that gates are set to reuse."""
    out: Path = Path("results/gates")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 2 for unusable input."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Calibrate, fit, decide, compare, write."""
    pipe = load_pipeline(options)
    use_scheduler(pipe, options.scheduler)
    task = options.make_task(pipe, OTHER_SEEDS + options.seed, options.guidance)
    calibration = obtain_calibration(pipe, task, options, compare_kv=False)
    policy = Policy.fit(calibration, seed=options.seed)
    families = list_families(pipe.scheduler, calibration, policy)
    gates = [f.settle(calibration.sites, options.reuse) for f in families.values()]
    gated = [*gates, *list_rivals(options.steps, calibration.sites)]
    print(*map(format_gate, gated), sep="\n\n")
    print(format_policy(policy), format_entropy(calibration), sep="\n\n")
    rows, machine = measure(pipe, task, gated), describe_machine(options.device)
    verdict = format_verdict(rows, gated, options.reuse)
    print(format_table(COLUMNS, rows, num_left=2), verdict, sep="\n\n")
    print(f"\n{format_notes(options, task)}", machine, sep="\n")
    out = options.out
    policy.save(out / "policy", next(each.table for each in gated if each.name == POLICY))
    (out / "tables").mkdir(exist_ok=True)
    for each in gated:
        each.table.save(out / "tables" / f"{file_name(each.name)}.json")
    write_rows(rows, out / "rows.jsonl", settings_of(options, task, pipe), machine)
    print(f"\nwrote {out / 'rows.jsonl'}, {out / 'policy'} and {out / 'tables'}")


def format_notes(options: Options, task: Task) -> str:
    """What the columns mean."""
    note = (
        "Gates have the threshold at which their reuse ratio is nearest to "
        f"{options.reuse:g}. reuse: share of (step, site). rows: distinct steps of the table. "
        "ceiling: speed if time were MACs. PSNR: against the untransformed model's "
        f"{len(task.seeds)} pictures of the same seeds, which the calibration has not seen "
        f"(from {task.seeds[0]} on); worst: of one picture."
    )
    return wrap_notes([note])


def settings_of(options: Options, task: Task, pipe: Any) -> dict[str, Any]:
    """What all rows share."""
    return {
        "model": model_name(options.model),
        "dtype": options.dtype,
        "steps": options.steps,
        "guidance": options.guidance,
        "scheduler_class": type(pipe.scheduler).__name__,
        "calibration_seed": options.seed,
        "seeds": task.seeds,
        "labels": task.labels,
        "target_reuse": options.reuse,
    }
