"""The command line of the main job."""

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

QUICK = {"steps": 8, "seeds": 2, "repeats": 1, "lowering": "eager"}

DESCRIPTION = """\
Generate the same pictures with the untransformed model and with schedules of reuse. Print one
table of speed, compile cost and PSNR; write its rows and a grid of the pictures.
"""
EXAMPLES = """\
examples:
  python -m benchmarks                                     # the reference pipeline
  python -m benchmarks --model facebook/DiT-XL-2-256 --dtype float16 --device cuda
  python -m benchmarks --model ./my-dit --steps 20 --seeds 4
  python -m benchmarks --lowering eager --repeats 3        # needs no compiler
  python -m benchmarks --quick                             # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        model: A pipeline folder, or a name on the hub.
        device: Where the pipeline runs.
        dtype: Name of the dtype of its parameters.
        lowering: ``"regional"``, ``"whole"`` or ``"eager"``.
        steps: Denoising steps.
        seeds: Pictures, in one batch; their seeds are 0, 1, 2, ...
        guidance: Guidance scale.
        repeats: Timed trajectories per row of the table.
        budget_s: Time after which no further repeat begins, once there are three.
        out: Folder to write to.
    """

    model: str
    device: torch.device
    dtype: str
    lowering: str
    steps: int
    seeds: int
    guidance: float
    repeats: int
    budget_s: float
    out: Path


def build_parser() -> Parser:
    """The parser of the main job."""
    parser = new_parser("python -m benchmarks", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add(
        "--lowering", choices=LOWERINGS, default="regional", help="what is compiled (regional)"
    )
    add("--steps", type=at_least(1), default=50, help="denoising steps (50)")
    add("--seeds", type=at_least(1), default=8, help="number of pictures, in one batch (8)")
    add("--guidance", type=float, default=1.5, help="guidance scale (1.5)")
    add("--repeats", type=at_least(1), default=5, help="timed trajectories per row (5)")
    add(
        "--budget",
        type=float,
        default=165.0,
        metavar="SECONDS",
        dest="budget_s",
        help="begin no further repeat after this, once there are three (165)",
    )
    add_out(parser, "results/main", QUICK)
    return parser


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    return Options(**read_values(build_parser(), argv, QUICK))
