"""The ablation: from the command line to the table, the claims and the pictures."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.ablation.claims import judge_claims
from benchmarks.ablation.configurations import (
    BASELINE,
    Entry,
    list_configurations,
    list_fewer_steps,
)
from benchmarks.ablation.facts import gather_facts
from benchmarks.ablation.generate import Studio, generate_pictures
from benchmarks.ablation.options import Options, parse_options
from benchmarks.ablation.plan import Plan, share_of_keys_values
from benchmarks.ablation.protocol import Protocol, use_scheduler
from benchmarks.ablation.report import print_report, write_report
from benchmarks.ablation.rows import make_rows
from benchmarks.ablation.timing import machine_of, measure_times, read_times
from benchmarks.ablation.workshop import SharingWorkshop
from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import Task, load_pipeline
from benchmarks.harness.store import Pieces
from benchmarks.harness.trials import Arena
from benchmarks.quality.images import from_bytes
from benchmarks.quality.judge import Judge, judge_for
from benchmarks.quality.panel import Panel


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if a configuration failed, 2 for unusable input, 130 if interrupted.
    """
    options = parse_options(argv)
    try:
        return run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130


def run(options: Options) -> int:
    """Measure what is not on disk, then print and write what is; the exit code."""
    pipe = load_pipeline(options)
    use_scheduler(pipe, options.scheduler)
    protocol = Protocol.of(pipe, options)
    judge = judge_for(pipe, extra=options.metrics, real=options.real)
    original = pipe.transformer
    plan = Plan.of(pipe, protocol, options)
    entries = enter(original, plan.task, options)
    pieces = plan.list_pictures(entries)
    refuse_others(pieces)

    errors = measure(pipe, plan, entries, pieces)
    times, samples = read_times(plan.times)
    comparable = list_comparable(entries, options)
    panel = Panel(judge, plan.group_task(0).labels, BASELINE, comparable)
    rows = make_rows(
        entries,
        times,
        panel.judge_pieces(pieces) or panel.judge_samples(samples),
        errors,
        parameter_bytes=sum(p.nbytes for p in original.parameters()),
        run=describe_run(plan, judge, original),
        machine=machine_of(times, options.device),
    )
    claims = judge_claims(rows)
    print_report(rows, claims)
    pictures = take_first(pieces, options.samples) or samples
    written = write_report(rows, claims, pictures, plan.task, options.out)
    print(f"\nwrote {', '.join(map(str, written))}")
    return 1 if any(row.error for row in rows) else 0


def enter(model: nn.Module, task: Task, options: Options) -> list[Entry]:
    """The configurations and their rivals, with what is known of each before it runs."""
    print("counting MACs ...", file=sys.stderr)
    compiled = options.lowering != "eager"
    contenders = list_configurations(options.steps, compiled=compiled, more=options.more)
    facts = gather_facts(model, task.example_call(model), contenders)
    return [
        *(Entry(contender, facts[contender.name]) for contender in contenders),
        *list_fewer_steps(facts, compiled=compiled),
    ]


def measure(pipe: Any, plan: Plan, entries: Sequence[Entry], pieces: Pieces) -> dict[str, str]:
    """Do what is not on disk yet; what went wrong with the pictures, by name."""
    options = plan.options
    workshop = SharingWorkshop(pipe.transformer, options.lowering)
    if options.time:
        arena = Arena(pipe, plan.task, workshop, options.device)
        measure_times(arena, entries, options, plan.times)
    if not pieces:
        return {}
    batch = min(options.batch, plan.group_size)
    studio = Studio(pipe, workshop, plan.protocol, plan.group_size, batch)
    return generate_pictures(studio, entries, pieces)


def refuse_others(pieces: Pieces) -> None:
    """Raise for pictures of another run, before anything is measured.

    Raises:
        InputError: There are some.
    """
    for groups in pieces.values():
        for piece in groups:
            piece.is_finished()


def list_comparable(entries: Sequence[Entry], options: Options) -> set[str]:
    """Configurations that see the baseline's noise: DDPM draws some at each step."""
    is_ddpm = options.scheduler == "ddpm"
    return {
        entry.contender.name
        for entry in entries
        if entry.contender.steps == options.steps or not is_ddpm
    }


def describe_run(plan: Plan, judge: Judge, model: Any) -> dict[str, Any]:
    """Options and settings that all rows share."""
    options = plan.options
    return {
        **plan.shared,
        "samples": options.samples,
        "seed_groups": options.seed_groups,
        "first_seeds": [plan.group_task(g).seeds[0] for g in range(options.seed_groups)],
        "frechet_name": judge.frechet_name,
        "lpips_name": judge.lpips_name,
        "kv_share": share_of_keys_values(model.config),
    }


def take_first(pieces: Pieces, count: int) -> dict[str, torch.Tensor]:
    """The first pictures of each configuration, if there are as many."""
    firsts = {name: groups[0] for name, groups in pieces.items() if groups[0].is_finished()}
    found = {name: from_bytes(each.read()["images"][:count]) for name, each in firsts.items()}
    return {name: images for name, images in found.items() if len(images) == count}
