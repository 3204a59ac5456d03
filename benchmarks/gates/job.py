"""The comparison of gates: from the command line to the table and the files."""

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.ablation.protocol import use_scheduler
from benchmarks.gates.calibrated import obtain_calibration
from benchmarks.gates.facts import Row, measure, write_rows
from benchmarks.gates.lineup import POLICY, Gated, list_families, list_rivals
from benchmarks.gates.options import Options, parse_options
from benchmarks.gates.report import (
    format_entropy,
    format_gate,
    format_policy,
    format_table,
    format_verdict,
)
from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.pipelines import Task, load_pipeline, model_name, name_classes
from benchmarks.harness.store import file_name
from dqar_fx import DqarError, Policy

OTHER_SEEDS = 10_000
"""Added to the seed of the calibration: its noise is not that of the comparison."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 2 for unusable input."""
    options = parse_options(argv)
    try:
        run(options)
    except (InputError, DqarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: Options) -> None:
    """Calibrate, fit, decide, compare, write."""
    pipe = load_pipeline(options)
    use_scheduler(pipe, options.scheduler)
    task = choose_task(pipe, options)
    calibration = obtain_calibration(
        pipe,
        task.labels,
        given=options.calibration,
        out=options.out,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        compare_kv=False,
    )
    policy = Policy.fit(calibration, seed=options.seed)
    families = list_families(pipe.scheduler, calibration, policy)
    gates = [f.settle(calibration.sites, options.reuse) for f in families.values()]
    gated = [*gates, *list_rivals(options.steps, calibration.sites)]
    print(*map(format_gate, gated), sep="\n\n")
    print(format_policy(policy), format_entropy(calibration), sep="\n\n")
    rows = measure(pipe, task, gated)
    print(format_table(rows), format_verdict(rows, gated, options.reuse), sep="\n\n")
    print(f"\n{format_notes(options, task)}")
    write(options, policy, gated, rows, settings_of(options, task, pipe))


def choose_task(pipe: Any, options: Options) -> Task:
    """One picture for each label, of seeds that the calibration does not use.

    Raises:
        InputError: The pipeline does not have a label.
    """
    names = name_classes(pipe)
    labels = options.labels or tuple(sorted(names)[: options.samples])
    unknown = [label for label in labels if label not in names]
    if unknown:
        raise InputError(
            f"--labels {' '.join(map(str, unknown))}: the pipeline has {len(names)} classes, "
            f"{min(names)} to {max(names)}"
        )
    first = OTHER_SEEDS + options.seed
    seeds = tuple(range(first, first + len(labels)))
    return Task(seeds, labels, tuple(names[label] for label in labels), options.guidance)


def format_notes(options: Options, task: Task) -> str:
    """What the columns mean, and where this was measured."""
    return "\n".join(
        (
            f"Gates have the threshold at which their reuse ratio is nearest to "
            f"{options.reuse:g}. reuse: share of (step, site). rows: distinct",
            "steps of the table. ceiling: speed if time were MACs. PSNR: against the "
            f"untransformed model's {len(task.seeds)}",
            f"pictures of the same seeds, which the calibration has not seen (from "
            f"{task.seeds[0]} on); worst: of one picture.",
            str(describe_machine(options.device)),
        )
    )


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


def write(
    options: Options,
    policy: Policy,
    gated: Sequence[Gated],
    rows: Sequence[Row],
    settings: dict[str, Any],
) -> None:
    """Write the policy with its table, all tables, and the rows."""
    out = options.out
    learned = next(each for each in gated if each.name == POLICY)
    policy.save(out / "policy", learned.table)
    (out / "tables").mkdir(exist_ok=True)
    for each in gated:
        each.table.save(out / "tables" / f"{file_name(each.name)}.json")
    write_rows(rows, settings, describe_machine(options.device), out / "rows.jsonl")
    print(f"\nwrote {out / 'rows.jsonl'}, {out / 'policy'} and {out / 'tables'}")
