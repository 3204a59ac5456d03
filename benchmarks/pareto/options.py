"""The command line of the comparison of quality and measured time."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.command_line import (
    LOWERINGS,
    Parser,
    above,
    add_out,
    at_least,
    new_parser,
    read_values,
)
from benchmarks.harness.machine import can_compile
from benchmarks.pareto.contenders import KEYS
from dqar_fx.schedule.forecast import MAX_ORDER

SWEEP = (10, 12, 14, 15, 17, 20, 22, 25, 30, 35, 40)
QUICK: dict[str, object] = {
    "steps": 8,
    "samples": 2,
    "repeats": 1,
    "fewer": [4],
    "every": [2],
    "orders": [1],
    "images": 6,
    "lowering": "eager",
}

DESCRIPTION = """\
Measure quality against the time of whole trajectories, paired and interleaved in one process:
the model with fewer steps; with the schedules and forecasts of dqar_fx; with tables from a
folder; with the caches of diffusers and cache-dit; and with their schedules run by dqar_fx.
Write rows, a table and a drawing of the front.

After an interruption the same command goes on where the run was.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.pareto                                    # the reference pipeline
  python -m benchmarks.pareto --tables my-front/tables           # and optimised tables
  python -m benchmarks.pareto --only fewer forecast cache-dit --judge none
  python -m benchmarks.pareto --judge "20 steps" "forecast order 2, every 4"
  python -m benchmarks.pareto --quick --out results/quick        # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        model: A pipeline folder, or a name on the hub.
        device: Where the pipeline runs.
        dtype: Name of the dtype of its parameters.
        lowering: ``"regional"``, ``"whole"`` or ``"eager"``.
        steps: Denoising steps of the full run.
        guidance: Guidance scale.
        samples: Pictures in a batch.
        only: Families that take part.
        rows: Patterns of names, as of a shell, of the rows that take part; empty for all.
        fewer: Numbers of steps of the untransformed model.
        every: Distances of computed steps of our own schedules.
        orders: Orders of our own forecasts.
        warmup: First steps of our own schedules, which compute everything.
        tables: Folder of branch tables; None for none.
        repeats: Timed trajectories per row.
        pair: Rows that are timed after each trajectory of the base.
        targets: Speeds at which rows are compared.
        judge: Names of rows that are judged against real pictures; None for those of each
            family that are nearest to the targets; empty for none.
        images: Pictures per judged row; 0 for none.
        seed_groups: Groups of seeds that these are spread over.
        out: Folder to write to.
    """

    model: str
    device: torch.device
    dtype: str
    lowering: str
    steps: int
    guidance: float
    samples: int
    only: tuple[str, ...]
    rows: tuple[str, ...]
    fewer: tuple[int, ...]
    every: tuple[int, ...]
    orders: tuple[int, ...]
    warmup: int
    tables: Path | None
    repeats: int
    pair: int
    targets: tuple[float, ...]
    judge: tuple[str, ...] | None
    images: int
    seed_groups: int
    out: Path


def build_parser() -> Parser:
    """The parser of this command."""
    parser = new_parser("python -m benchmarks.pareto", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--lowering", choices=LOWERINGS, default="regional", help="of ours (regional)")
    add("--steps", type=at_least(2), default=50, help="denoising steps of the full run (50)")
    add("--guidance", type=float, default=1.5, help="guidance scale (1.5)")
    add("--samples", type=at_least(1), default=8, help="pictures in a batch (8)")
    add_rows(parser)
    add_times(parser)
    add_quality(parser)
    add_out(parser, "results/pareto", QUICK)
    return parser


def add_rows(parser: Parser) -> None:
    """Options of who takes part."""
    add = parser.add_argument_group("rows").add_argument
    add("--only", choices=KEYS, nargs="+", default=list(KEYS), help="these families (all)")
    add("--rows", nargs="+", default=[], metavar="PATTERN", help="rows of such names (all)")
    add(
        "--fewer",
        type=at_least(1),
        nargs="+",
        metavar="STEPS",
        help=f"steps of the untransformed model ({' '.join(map(str, SWEEP))} of 50)",
    )
    add("--every", type=at_least(2), nargs="+", default=[2, 3, 4, 5], help="(2 3 4 5)")
    add("--orders", type=order_of, nargs="+", default=[1, 2], help="of forecasts (1 2)")
    add("--warmup", type=at_least(1), default=1, help="first steps that compute all (1)")
    add("--tables", type=Path, metavar="FOLDER", help="branch tables, a row for each JSON")


def add_times(parser: Parser) -> None:
    """Options of the times."""
    add = parser.add_argument_group("times").add_argument
    add("--repeats", type=at_least(1), default=5, help="timed trajectories per row (5)")
    add("--pair", type=at_least(1), default=4, help="rows per trajectory of the base (4)")
    add(
        "--targets",
        type=above(1.0),
        nargs="+",
        metavar="SPEED",
        default=[2.0, 2.5],
        help="speeds at which rows are compared (2.0 2.5)",
    )


def add_quality(parser: Parser) -> None:
    """Options of the pictures that are judged."""
    add = parser.add_argument_group("quality").add_argument
    add(
        "--judge",
        nargs="+",
        metavar="ROW",
        help='rows to judge, or "none" (of each family those nearest to the targets)',
    )
    add("--images", type=at_least(0), default=2100, help="per judged row (2100); 0 for none")
    add("--seed-groups", type=at_least(1), default=3, help="groups of seeds (3)")


def order_of(text: str) -> int:
    """A converter for argparse: the order of a forecast."""
    order = at_least(1)(text)
    if order > MAX_ORDER:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_ORDER}, found {text!r}")
    return order


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    parser = build_parser()
    values = read_values(parser, argv, QUICK)
    if values["images"] % values["seed_groups"]:
        parser.error(
            f"--images {values['images']} is no multiple of --seed-groups "
            f"{values['seed_groups']}: each group needs as many pictures"
        )
    values["fewer"] = choose_fewer(parser, values["fewer"], values["steps"])
    for name in ("only", "rows", "every", "orders", "targets"):
        values[name] = tuple(dict.fromkeys(values[name]))
    if values["judge"] is not None:
        values["judge"] = () if values["judge"] == ["none"] else tuple(values["judge"])
    if values["lowering"] != "eager" and not can_compile(values["device"]):
        print("no C++ compiler was found: nothing is compiled", file=sys.stderr)
        values["lowering"] = "eager"
    return Options(**values)


def choose_fewer(parser: Parser, asked: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    """Numbers of steps below the full one; by default shares as of a full run of 50."""
    if asked is None:
        scaled = (max(1, round(steps * number / 50)) for number in SWEEP)
        return tuple(dict.fromkeys(number for number in scaled if number < steps))
    if max(asked) >= steps:
        parser.error(f"--fewer {max(asked)} is not fewer than --steps {steps}")
    return tuple(dict.fromkeys(asked))
