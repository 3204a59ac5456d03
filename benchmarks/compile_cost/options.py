"""The command line of the cost of compilation."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import (
    Parser,
    above,
    add_geometry,
    at_least,
    describe,
    folder_to_write,
    read_geometry,
)
from benchmarks.compile_cost.points import Point, cross, middle
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import can_compile

LAYERS, STEPS, RAMPS = (12, 28, 56), (20, 50, 100), (2, 45)
QUICK: dict[str, object] = {
    "layers": [2],
    "steps": [8],
    "ramps": [],
    "repeats": 1,
    "width": 32,
    "heads": 2,
    "tokens": 16,
}

DESCRIPTION = """\
Time compilation in processes of its own: cold, with an empty cache, then warm, over the cache
that the cold process has left. The untransformed model as one graph, and linear schedules by
regions, at each number of layers, of steps, and of distinct rows; one thing at a time differs
from the middle of the given numbers. Repeats take turns.

After an interruption the same command goes on where the run was: what rows.jsonl has of the
same settings, machine and commit is not measured again. What failed is tried again.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.compile_cost                       # 12 28 56 layers, 20 50 100 steps
  python -m benchmarks.compile_cost --layers 12 --steps 50 --ramps --repeats 1
  python -m benchmarks.compile_cost --layers 28 --width 1152 --heads 16       # DiT-XL/2
  python -m benchmarks.compile_cost --quick --out results/quick      # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        geometries: By number of layers, sorted.
        steps: Numbers of steps, sorted.
        ramps: Steps over which reuse spreads, beside the schedule's own number.
        whole: Numbers of layers of which the untransformed model is compiled.
        repeats: Processes of each point and phase.
        timeout_s: How long a process may take.
        out: Folder to write to.
    """

    geometries: tuple[Geometry, ...]
    steps: tuple[int, ...]
    ramps: tuple[int, ...]
    whole: tuple[int, ...]
    repeats: int
    timeout_s: float
    out: Path

    @property
    def points(self) -> list[Point]:
        """What is compiled, in the order of the table."""
        wholes = [
            Point("whole", geometry, steps=1)
            for geometry in self.geometries
            if geometry.layers in self.whole
        ]
        return [*wholes, *cross(self.geometries, self.steps, self.ramps)]


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="python -m benchmarks.compile_cost",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",  # here --layers are several
    )
    add_geometry(parser)
    add = parser.add_argument
    add_numbers(parser, "--layers", LAYERS, "numbers of layers")
    add_numbers(parser, "--steps", STEPS, "steps of linear schedules")
    add_numbers(parser, "--ramps", RAMPS, "steps over which reuse spreads, or none", "*")
    add_numbers(parser, "--whole", None, "layers untransformed, or none (the middle)", "*")
    add("--repeats", type=at_least(1), default=3, help="processes of each (3)")
    add("--timeout-s", type=above(0), default=1800.0, help="for a process (1800)")
    add("--out", type=folder_to_write, default="results/compile_cost", help="folder")
    add("--quick", action="store_true", help=f"other defaults: {describe(QUICK)}")
    return parser


def add_numbers(
    parser: Parser, name: str, default: Sequence[int] | None, what: str, nargs: str = "+"
) -> None:
    """An option of several numbers."""
    told = "" if default is None else f" ({' '.join(map(str, default))})"
    parser.add_argument(
        name,
        type=at_least(1),
        nargs=nargs,
        default=default,
        metavar="N",
        help=f"{what}{told}",
    )


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args(argv)
    if not can_compile(torch.device("cpu")):
        parser.error("no C++ compiler was found, and this measures compilation")
    numbers = {name: sort(getattr(args, name)) for name in ("layers", "steps", "ramps")}
    layers = numbers.pop("layers")
    whole = (middle(layers),) if args.whole is None else sort(args.whole)
    for each in whole:
        if each not in layers:
            parser.error(f"--whole {each} is none of --layers {' '.join(map(str, layers))}")
    shape = read_geometry(parser, argparse.Namespace(**vars(args) | {"layers": layers[0]}))
    return Options(
        geometries=tuple(replace(shape, layers=each) for each in layers),
        whole=whole,
        repeats=args.repeats,
        timeout_s=args.timeout_s,
        out=args.out,
        **numbers,
    )


def sort(values: Any) -> tuple[int, ...]:
    """Each number once, from low to high."""
    return tuple(sorted(set(values)))
