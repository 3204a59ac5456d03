"""The measurement: from the command line to tables, exponents and rows."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.command_line import Parser, at_least, describe, folder_to_write
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import describe_machine
from benchmarks.scale.fit import AXES, format_growth, format_verdict
from benchmarks.scale.phases import PHASES, Growth, measure

NARROW = Geometry(layers=2, width=16, heads=2, tokens=4, batch=2)
LAYERS, STEPS = (14, 28, 56, 112), (50, 100, 500, 1000)
QUICK: dict[str, object] = {"layers": [2, 4], "steps": [8, 16], "repeats": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    args = parse_arguments(argv)
    order = list_runs(args.layers, args.steps, args.repeats)
    measure(NARROW, 2)  # what is done once in a process
    rows = []
    with tqdm(order, desc="transform", unit="model") as bar:
        for layers, steps in bar:
            bar.set_postfix_str(f"{layers} layers, {steps} steps")
            rows.append(measure(replace(NARROW, layers=layers), steps))
    report(rows)
    path = args.out / "rows.jsonl"
    write_rows(rows, path)
    print(f"wrote {path}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; None takes that of the process."""
    parser = Parser(prog="python -m benchmarks.scale", description=__doc__)
    add = parser.add_argument
    for name, default in (("layers", LAYERS), ("steps", STEPS)):
        told = f"at least two ({' '.join(map(str, default))})"
        add(f"--{name}", type=at_least(1), nargs="+", default=default, help=told)
    told = "of each, in turn, but one of the most layers, which take long (3)"
    add("--repeats", type=at_least(1), default=3, help=told)
    add("--out", type=folder_to_write, default="results/scale", help="folder")
    add("--quick", action="store_true", help=f"other defaults: {describe(QUICK)}")
    args = parser.parse_args(argv)
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args(argv)
    for name in AXES:
        sizes = sorted(set(getattr(args, name)))
        if len(sizes) < 2:
            parser.error(f"--{name} needs two different numbers, found {sizes[0]}")
        setattr(args, name, sizes)
    return args


def list_sizes(layers: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    """Layers and steps: each number of one with the second or first of the other."""
    pairs = [(each, steps[0]) for each in layers] + [(layers[1], each) for each in steps]
    return list(dict.fromkeys(pairs))


def list_runs(
    layers: Sequence[int], steps: Sequence[int], repeats: int
) -> list[tuple[int, int]]:
    """All sizes in turn, as often as asked; of three or more layers the most once."""
    sizes, once = list_sizes(layers, steps), max(layers[2:], default=None)
    others = [size for size in sizes if size[0] != once]
    return sizes + others * (repeats - 1)


def report(rows: Sequence[Growth]) -> None:
    """Print both tables and the verdict."""
    for axis in AXES:
        print(format_growth(rows, axis), end="\n\n")
    print(*format_verdict(rows), "", sep="\n")
    print("; ".join(f"{phase}: {meaning}" for phase, meaning in PHASES.items()))
    print(describe_machine(torch.device("cpu")))


def write_rows(rows: Sequence[Growth], path: Path) -> None:
    """Write one line of JSON per transformation."""
    shared = asdict(describe_machine(torch.device("cpu")))
    path.write_text("".join(json.dumps(asdict(row) | shared) + "\n" for row in rows))
