"""The command line of the ablation."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.command_line import (
    LOWERINGS,
    Parser,
    add_out,
    at_least,
    new_parser,
    read_values,
)
from benchmarks.harness.machine import can_compile

SCHEDULERS = ("ddpm", "keep")
QUICK = {
    "steps": 8,
    "samples": 2,
    "repeats": 1,
    "images": 6,
    "batch": 2,
    "lowering": "eager",
}

DESCRIPTION = """\
Run the ablation of the DQAR report (baseline, scheduling_only, quant_cache_only, full_dqar)
with rivals of equal cost or equal reuse. Print one table of time, reuse, cache memory and
quality, and what becomes of the report's claims. Write both, and a grid of pictures.

After an interruption the same command goes on where the run was.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.ablation                                  # the reference pipeline
  python -m benchmarks.ablation --model facebook/DiT-XL-2-256 --device cuda --images 0
  python -m benchmarks.ablation --no-time --batch 50             # only the pictures
  python -m benchmarks.ablation --quick --out results/quick      # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        model: A pipeline folder, or a name on the hub.
        device: Where the pipeline runs.
        dtype: Name of the dtype of its parameters.
        lowering: ``"regional"``, ``"whole"`` or ``"eager"``.
        scheduler: ``"ddpm"``, as in the report, or ``"keep"`` for the pipeline's own.
        steps: Denoising steps.
        classes: Of the pictures, in turn; None for those of the report or the pipeline.
        guidance: Guidance scale.
        time: Whether times are measured.
        samples: Pictures in the batch that is timed.
        repeats: Timed trajectories per configuration.
        budget_s: Time after which no further repeat begins, once there are three.
        images: Pictures per configuration that are judged; 0 for none.
        seed_groups: Groups of seeds that these are spread over.
        batch: Pictures in one batch of these.
        metrics: Whether LPIPS and CLIP score are added, for other pipelines.
        real: Folder of real pictures to measure FID against, for other pipelines.
        more: Whether pairs at the table with ``max_age=3`` take part, too.
        out: Folder to write to.
    """

    model: str
    device: torch.device
    dtype: str
    lowering: str
    scheduler: str
    steps: int
    classes: tuple[int, ...] | None
    guidance: float
    time: bool
    samples: int
    repeats: int
    budget_s: float
    images: int
    seed_groups: int
    batch: int
    metrics: bool
    real: Path | None
    more: bool
    out: Path


def build_parser() -> Parser:
    """The parser of the ablation."""
    parser = new_parser("python -m benchmarks.ablation", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    parser.set_defaults(dtype=None)  # float16 on cuda, else float32
    add(
        "--lowering", choices=LOWERINGS, default="regional", help="what is compiled (regional)"
    )
    add("--scheduler", choices=SCHEDULERS, default="ddpm", help="ddpm or the pipeline's own")
    add("--steps", type=at_least(2), default=50, help="denoising steps (50)")
    add("--classes", type=at_least(0), nargs="+", metavar="N", help="in turn (the report's)")
    add("--guidance", type=float, default=1.5, help="guidance scale (1.5)")
    add_timing(parser)
    add_quality(parser)
    add("--more", action="store_true", help="also compare at the table with max_age=3")
    add_out(parser, "results/ablation", QUICK)
    return parser


def add_timing(parser: Parser) -> None:
    """Options of the times."""
    add = parser.add_argument_group("times").add_argument
    add("--time", action=argparse.BooleanOptionalAction, default=True, help="measure them")
    add("--samples", type=at_least(1), default=8, help="pictures in a batch (8; report: 4-8)")
    add("--repeats", type=at_least(1), default=5, help="timed trajectories per row (5)")
    add(
        "--budget",
        type=float,
        default=420.0,
        metavar="SECONDS",
        dest="budget_s",
        help="begin no further repeat after this, once there are three (420)",
    )


def add_quality(parser: Parser) -> None:
    """Options of the pictures that are judged."""
    add = parser.add_argument_group("quality").add_argument
    add("--images", type=at_least(0), default=2100, help="per row (2100); 0 for none")
    add("--seed-groups", type=at_least(1), default=3, help="groups of seeds (3)")
    add("--batch", type=at_least(1), default=100, help="pictures in a batch (100)")
    add("--metrics", action="store_true", help="add LPIPS, CLIP score (extra metrics; others)")
    add("--real", type=Path, metavar="FOLDER", help="real pictures, for FID (extra metrics)")


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    parser = build_parser()
    values = read_values(parser, argv, QUICK)
    if values["images"] % values["seed_groups"]:
        parser.error(
            f"--images {values['images']} is no multiple of --seed-groups "
            f"{values['seed_groups']}: each group needs as many pictures"
        )
    device = values["device"]
    values["dtype"] = values["dtype"] or ("float16" if device.type == "cuda" else "float32")
    if values["classes"] is not None:
        values["classes"] = tuple(values["classes"])
    if values["lowering"] != "eager" and not can_compile(device):
        print("no C++ compiler was found: nothing is compiled", file=sys.stderr)
        values["lowering"] = "eager"
    return Options(**values)
