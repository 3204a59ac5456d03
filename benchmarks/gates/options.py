"""The command line of the comparison of gates."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.ablation.options import SCHEDULERS
from benchmarks.command_line import (
    Parser,
    add_out,
    at_least,
    folder_to_keep,
    new_parser,
    read_values,
)

QUICK: dict[str, object] = {"steps": 8, "samples": 1}

DESCRIPTION = """\
Calibrate a pipeline, fit the learned policy, and let gates decide: by signal-to-noise ratio,
by attention entropy, by the policy, and combined with schedules; each with the threshold at
which it reuses as much as the others. Print their tables and one comparison, in eager mode.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.gates                                  # the reference pipeline
  python -m benchmarks.gates --reuse 0.6                      # at another reuse ratio
  python -m benchmarks.gates --calibration my-calibration     # read it there, or write it
  python -m benchmarks.gates --quick --out results/quick      # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        model: A pipeline folder, or a name on the hub.
        device: Where the pipeline runs.
        dtype: Name of the dtype of its parameters.
        scheduler: ``"keep"`` for the pipeline's own, or ``"ddpm"``.
        steps: Denoising steps.
        labels: Classes of the pictures, of the calibration and the comparison; None for the
            first ones of the pipeline.
        samples: How many classes that are.
        guidance: Guidance scale.
        seed: Of the calibration; the pictures that are compared have others.
        reuse: Share of cells that gates are set to reuse.
        calibration: Folder to read a calibration from, or to write it to; None to measure.
        out: Folder to write to.
    """

    model: str
    device: torch.device
    dtype: str
    scheduler: str
    steps: int
    labels: tuple[int, ...] | None
    samples: int
    guidance: float
    seed: int
    reuse: float
    calibration: Path | None
    out: Path


def share(text: str) -> float:
    """A converter for argparse: a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {text!r}")
    return value


def build_parser() -> Parser:
    """The parser of the comparison."""
    parser = new_parser("python -m benchmarks.gates", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--scheduler", choices=SCHEDULERS, default="keep", help="the pipeline's own, or ddpm")
    add("--steps", type=at_least(6), default=50, help="denoising steps (50)")
    add("--labels", type=at_least(0), nargs="+", metavar="N", help="classes of the pictures")
    add("--samples", type=at_least(1), default=8, help="number of classes, without these (8)")
    add("--guidance", type=float, default=1.5, help="guidance scale (1.5)")
    add("--seed", type=at_least(0), default=0, help="of the calibration (0)")
    add("--reuse", type=share, default=0.5, help="reuse ratio that gates are set to (0.5)")
    add(
        "--calibration",
        type=folder_to_keep,
        metavar="FOLDER",
        help="read it there, or write it there",
    )
    add_out(parser, "results/gates", QUICK)
    return parser


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    values = read_values(build_parser(), argv, QUICK)
    values["labels"] = tuple(values["labels"]) if values["labels"] else None
    return Options(**values)
