"""The command line of the figures."""

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

FIGURES = ("speed", "reuse", "quality", "architecture", "mismatch")
QUICK: dict[str, object] = {"steps": 6, "samples": 1}

DESCRIPTION = """\
Draw the figures of the DQAR report from what is measured here: as PNG and SVG, with a page of
captions. The bars of speed need the rows that python -m benchmarks.ablation writes; everything
else is measured by this command, in eager mode.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.figures                              # all of them
  python -m benchmarks.figures --only speed                 # draw one again
  python -m benchmarks.figures --calibration my-calibration # keep what takes longest
  python -m benchmarks.figures --quick --out results/quick  # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        model: A pipeline folder, or a name on the hub.
        device: Where the pipeline runs.
        dtype: Name of the dtype of its parameters.
        scheduler: ``"ddpm"``, as in the ablation, or ``"keep"`` for the pipeline's own.
        steps: Denoising steps.
        labels: Classes of the pictures; None for the first ones of the pipeline.
        samples: How many classes that are.
        seed: Of the first picture; the others follow.
        calibration: Folder to read a calibration from, or to write it to; None to measure.
        ablation: Folder with the rows of the ablation.
        only: Names of the figures to draw.
        out: Folder to write to.
    """

    model: str
    device: torch.device
    dtype: str
    scheduler: str
    steps: int
    labels: tuple[int, ...] | None
    samples: int
    seed: int
    calibration: Path | None
    ablation: Path
    only: tuple[str, ...]
    out: Path


def build_parser() -> Parser:
    """The parser of the figures."""
    parser = new_parser("python -m benchmarks.figures", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--scheduler", choices=SCHEDULERS, default="ddpm", help="ddpm or the pipeline's own")
    add("--steps", type=at_least(4), default=50, help="denoising steps (50)")
    add("--labels", type=at_least(0), nargs="+", metavar="N", help="classes of the pictures")
    add("--samples", type=at_least(1), default=8, help="number of classes, without these (8)")
    add("--seed", type=at_least(0), default=42, help="of the first picture (42)")
    add(
        "--calibration",
        type=folder_to_keep,
        metavar="FOLDER",
        help="read it there, or write it there",
    )
    add(
        "--ablation",
        type=Path,
        metavar="FOLDER",
        default=Path("results/ablation"),
        help="rows of the ablation (results/ablation)",
    )
    add("--only", choices=FIGURES, nargs="+", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    add_out(parser, "results/figures", QUICK)
    return parser


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    values = read_values(build_parser(), argv, QUICK)
    values["only"] = tuple(values["only"] or FIGURES)
    values["labels"] = tuple(values["labels"]) if values["labels"] else None
    return Options(**values)
