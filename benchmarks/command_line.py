"""What the command lines of all benchmarks share."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import choose_device
from benchmarks.harness.pipelines import DTYPES
from benchmarks.reference import PIPELINE
from dqar_fx.command_line.arguments import Parser as Parser
from dqar_fx.command_line.arguments import at_least as at_least

LOWERINGS = ("regional", "whole", "eager")


def new_parser(command: str, description: str, examples: str) -> Parser:
    """A parser that knows which pipeline, and where it runs."""
    parser = Parser(
        prog=command,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=str(PIPELINE), help="DiT pipeline folder or hub name (reference)")
    add("--device", type=device_of, help="cpu, cuda, mps, ... (the fastest there is)")
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the parameters (float32)")
    return parser


def add_out(parser: Parser, folder: str, quick: Mapping[str, object]) -> None:
    """Options of where to write, and of a run that only shows that it works."""
    add = parser.add_argument
    add("--out", type=folder_to_write, default=folder, help=f"folder ({folder})")
    add("--quick", action="store_true", help=f"other defaults: {describe(quick)}")


def read_values(
    parser: Parser, argv: Sequence[str] | None, quick: Mapping[str, object]
) -> dict[str, Any]:
    """The values of a command line; None takes that of the process."""
    values = vars(parser.parse_args(argv))
    if values["quick"]:
        parser.set_defaults(**quick)
        values = vars(parser.parse_args(argv))
    del values["quick"]
    values["device"] = values["device"] or choose_device()
    return values


def above(minimum: float) -> Callable[[str], float]:
    """A converter for argparse: a number above ``minimum``."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = minimum
        if not minimum < value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"expected a number above {minimum:g}, found {text!r}"
            )
        return value

    return convert


def device_of(text: str) -> torch.device:
    """A converter for argparse: a device that can be used here."""
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use device {text!r}: {reason}") from None
    if device.type == "meta":
        raise argparse.ArgumentTypeError("device 'meta' computes nothing; try cpu")
    return device


def folder_to_write(text: str) -> Path:
    """A converter for argparse: a folder that exists or can be made."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"cannot write to {text!r}: {error.strerror}"
        ) from None
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}: no permission")
    return folder


def folder_to_keep(text: str) -> Path:
    """A converter for argparse: a folder with a calibration, or one to write it to."""
    folder = Path(text)
    return folder if (folder / "calibration.json").exists() else folder_to_write(text)


def describe(values: Mapping[str, object]) -> str:
    """Names and values in words."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def add_geometry(parser: Parser) -> None:
    """Options of the geometry, and of threads."""
    group = parser.add_argument_group("geometry (DiT-XL/2: 28 layers, width 1152, 16 heads)")
    for name, default in Geometry().__dict__.items():
        group.add_argument(f"--{name}", type=at_least(1), default=default, help=f"({default})")
    parser.add_argument("--threads", type=at_least(1), help="CPU threads (PyTorch's default)")


def read_geometry(parser: Parser, args: argparse.Namespace) -> Geometry:
    """The geometry of parsed options; sets the threads."""
    if isqrt(args.tokens) ** 2 != args.tokens:
        parser.error(f"--tokens must be a square number, found {args.tokens}")
    if args.width % args.heads:
        parser.error(f"--width {args.width} is no multiple of --heads {args.heads}")
    if args.threads:
        torch.set_num_threads(args.threads)
    names = Geometry.__dataclass_fields__
    return Geometry(**{name: getattr(args, name) for name in names})
