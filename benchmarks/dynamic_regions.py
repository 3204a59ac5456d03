"""Steps of regions that are compiled for all sizes, against those of one: side by side.

Two denoisers of one model take turns, trajectory by trajectory: one with regions for the size
that is called, one with regions that take any. What is told is the ratio of paired steps.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

import dqar_fx
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import Command, Count, at_least, run_command
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.harness.timing import find_quartiles, take_ratios
from dqar_fx import Denoiser

Inputs = dict[str, torch.Tensor]
WARMUP_STEPS = 2
HEAD_DIM = 64
TEXT_TOKENS = 64


@dataclass(frozen=True)
class Subject:
    """A model, and what it is called with.

    Attributes:
        name: Of its geometry.
        model: The model.
        inputs: Its arguments but the timestep.
    """

    name: str
    model: nn.Module
    inputs: Inputs


def make_dit(layers: int, tokens: int) -> Subject:
    """DiT-S/2."""
    geometry = Geometry(layers=layers, tokens=tokens)
    inputs = {"hidden_states": geometry.draw_latent(), "class_labels": geometry.labels()}
    return Subject(f"DiT, {geometry}", geometry.build(), inputs)


def make_flux(layers: int, tokens: int) -> Subject:
    """Flux of a middle width: half of its blocks are double ones."""
    torch.manual_seed(0)
    heads, width = 12, 12 * HEAD_DIM
    build: Any = FluxTransformer2DModel
    model = build(
        in_channels=HEAD_DIM,
        num_layers=layers // 2,
        num_single_layers=layers - layers // 2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=heads,
        joint_attention_dim=width,
        pooled_projection_dim=width,
        axes_dims_rope=(16, 24, 24),
    )
    inputs = {
        "hidden_states": torch.randn(2, tokens, HEAD_DIM),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, width),
        "pooled_projections": torch.randn(2, width),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }
    name = f"Flux, {layers} layers, width {width}, {tokens} + {TEXT_TOKENS} tokens, batch 2"
    return Subject(name, model.eval().requires_grad_(False), inputs)


SUBJECTS: tuple[Callable[[int, int], Subject], ...] = (make_dit, make_flux)


@dataclass(frozen=True)
class Comparison:
    """Paired steps of one model.

    Attributes:
        subject: The model.
        static_ms: The median step of regions for one size.
        dynamic_ms: That of regions for all.
        ratio: Time of the second by the first, median of pairs.
        ratio_low: Lower quartile.
        ratio_high: Upper quartile.
        pairs: How many pairs.
    """

    subject: str
    static_ms: float
    dynamic_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int


def time_steps(denoiser: Denoiser, subject: Subject, steps: int) -> Iterator[float]:
    """Seconds of each step of a trajectory."""
    for step in range(steps):
        timestep = torch.full((2,), 0.9 - 0.8 * step / steps)
        start = time.perf_counter()
        denoiser(timestep=timestep, **subject.inputs)
        yield time.perf_counter() - start


@torch.no_grad()
def compare(subject: Subject, steps: int, repeats: int, backend: str) -> Comparison:
    """Both kinds of regions of one model."""
    schedule = dqar_fx.Schedule.interval(steps, 2)
    denoisers = [
        dqar_fx.transform(
            subject.model, schedule, compile={"backend": backend, "dynamic": dynamic}
        )
        for dynamic in (False, True)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1 + repeats):
        turns = list(zip(denoisers, times, strict=True))
        for denoiser, found in turns if number % 2 else reversed(turns):
            measured = list(time_steps(denoiser, subject, steps))
            if number:  # the first compiles
                found += measured[WARMUP_STEPS:]
    static, dynamic = times
    ratios = find_quartiles(take_ratios(dynamic, static))
    return Comparison(
        subject.name,
        1e3 * find_quartiles(static).median,
        1e3 * find_quartiles(dynamic).median,
        ratios.median,
        ratios.low,
        ratios.high,
        len(static),
    )


COLUMNS = [
    Column("model", "subject"),
    Column("one size, ms", "static_ms", ".2f"),
    Column("all sizes, ms", "dynamic_ms", ".2f"),
    Column("ratio", "ratio", ".3f"),
    Column("lower quartile", "ratio_low", ".3f"),
    Column("upper quartile", "ratio_high", ".3f"),
    Column("pairs", "pairs"),
]


@dataclass(frozen=True)
class Options(Command):
    """Options of this command."""

    COMMAND = "benchmarks.dynamic_regions"

    steps: Annotated[int, at_least(WARMUP_STEPS + 1)] = 20
    """Of a trajectory."""
    repeats: Count = 10
    """Trajectories of each, after one that compiles."""
    layers: Count = 12
    """Blocks."""
    tokens: Count = 256
    """Patches of a picture, a square number."""
    backend: str = "inductor"
    """Of ``torch.compile``."""
    out: Path = Path("results/dynamic_regions")
    """Folder to write to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Measure, print and write."""
    machine = describe_machine(torch.device("cpu"))
    rows = []
    for make in SUBJECTS:
        subject = make(options.layers, options.tokens)
        rows.append(compare(subject, options.steps, options.repeats, options.backend))
    print(format_table(COLUMNS, rows), machine, sep="\n\n")
    path = options.out / "rows.jsonl"
    write_rows(rows, path, machine)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
