"""The command line of the comparison with peers."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import (
    Parser,
    above,
    add_out,
    at_least,
    new_parser,
    read_values,
)
from benchmarks.harness.machine import can_compile
from benchmarks.peers.stage import GEOMETRIES

QUICK: dict[str, object] = {
    "steps": 6,
    "samples": 2,
    "repeats": 1,
    "images": 0,
    "fewer": [5],
    "eager": True,
    "only": ["*PAB range 2, timesteps all*", "* steps, eager"],
}
PIPELINE_DEFAULTS = {"steps": 50, "samples": 8, "repeats": 5, "images": 700}

DESCRIPTION = """\
Compare dqar_fx with what else caches on a DiT, on one model and the same seeds: the model as
it is, compiled, and with fewer steps of equal cost; the caches of diffusers and cache-dit,
eager and compiled; dqar_fx with the same branch tables, eager, by regions and whole. Each row
has a process of its own, where it takes turns with the compiled untransformed model.

After an interruption the same command goes on where the run was. What failed is a row; it is
tried again with --retry.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.peers                                   # the reference pipeline
  python -m benchmarks.peers --only "*PAB range 2*" "*steps*"  # some rows
  python -m benchmarks.peers --geometry DiT-XL/2               # random weights, 12 steps
  python -m benchmarks.peers --report                          # what is on disk
  python -m benchmarks.peers --quick --out results/quick       # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        model: A pipeline folder, a name on the hub, or the name of the geometry.
        geometry: A size with random weights in the place of a pipeline; None for none.
        device: Where it runs.
        dtype: Name of the dtype of its parameters.
        steps: Denoising steps of the full run.
        guidance: Guidance scale.
        samples: Pictures in a batch.
        only: Patterns of names, as of a shell, of the rows that take part; empty for all.
        fewer: Numbers of steps of the untransformed model; None for those of equal cost.
        eager: Whether nothing is compiled, the unit included.
        repeats: Timed trajectories per row.
        images: Pictures per row that are judged against real ones; 0 for none.
        timeout_s: What a process may take.
        retry: Whether rows that failed are tried again.
        report: Whether only what is on disk is shown.
        out: Folder to write to.
        contender: Of a measuring process, whom it measures.
        warm_cache: Of a measuring process, where the unit's kernels are kept.
    """

    model: str
    geometry: str | None
    device: torch.device
    dtype: str
    steps: int
    guidance: float
    samples: int
    only: tuple[str, ...]
    fewer: tuple[int, ...] | None
    eager: bool
    repeats: int
    images: int
    timeout_s: float
    retry: bool
    report: bool
    out: Path
    contender: str | None = None
    warm_cache: Path | None = None


def build_parser() -> Parser:
    """The parser of this command."""
    parser = new_parser("python -m benchmarks.peers", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, help="random weights of this size, no pictures")
    add("--steps", type=at_least(2), help="denoising steps (50; DiT-S/2: 20, DiT-XL/2: 12)")
    add("--guidance", type=above(1.0), default=1.5, help="guidance scale, above 1 (1.5)")
    add("--samples", type=at_least(1), help="pictures in a batch (8; of a geometry: 1)")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="rows of such names (all)")
    add(
        "--fewer",
        type=at_least(1),
        nargs="+",
        metavar="STEPS",
        help="steps of the untransformed model (those of equal cost)",
    )
    add("--eager", action="store_true", help="compile nothing, not even the unit")
    add("--repeats", type=at_least(1), help="timed trajectories per row (5; DiT-XL/2: 3)")
    add("--images", type=at_least(0), help="per row, for FD (700); 0 for none")
    add("--retry", action="store_true", help="try again what failed")
    add("--report", action="store_true", help="show what is on disk, measure nothing")
    add(
        "--timeout",
        type=above(0.0),
        default=3600.0,
        metavar="SECONDS",
        dest="timeout_s",
        help="what one row's process may take (3600)",
    )
    add("--contender", help=argparse.SUPPRESS)
    add("--warm-cache", type=Path, help=argparse.SUPPRESS)
    add_out(parser, "results/peers", QUICK)
    return parser


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    parser = build_parser()
    values = read_values(parser, argv, QUICK)
    check_geometry(parser, values)
    geometry = values["geometry"]
    defaults = PIPELINE_DEFAULTS if geometry is None else GEOMETRIES[geometry].defaults
    for name, value in defaults.items():
        if values[name] is None:
            values[name] = value
    values["only"] = tuple(dict.fromkeys(values["only"]))
    if values["fewer"] is not None:
        if max(values["fewer"]) >= values["steps"]:
            parser.error(
                f"--fewer {max(values['fewer'])} is not fewer than --steps {values['steps']}"
            )
        values["fewer"] = tuple(dict.fromkeys(values["fewer"]))
    if values["images"] == 1:
        parser.error("--images 1 has no distribution: give 0, or 2 and more")
    if not values["eager"] and not can_compile(values["device"]):
        print("no C++ compiler was found: nothing is compiled", file=sys.stderr)
        values["eager"] = True
    return Options(**values)


def check_geometry(parser: Parser, values: dict[str, Any]) -> None:
    """Refuse what a geometry has not; name the model after it."""
    if values["geometry"] is None:
        return
    if values["model"] != parser.get_default("model"):
        parser.error("--model and --geometry are two models: give one of them")
    if values["images"]:
        parser.error(
            f"--images {values['images']}: --geometry {values['geometry']} has random weights "
            "and no VAE, so that there are no pictures to judge; its rows show the error of "
            "the final latent"
        )
    values["model"] = values["geometry"]
