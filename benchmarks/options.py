"""The command line of the main job."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks.machine import choose_device
from benchmarks.reference import PIPELINE

LOWERINGS = ("regional", "whole", "eager")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
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


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with code 2."""
        self.exit(2, f"error: {message}\n")


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


def at_least(minimum: int) -> Callable[[str], int]:
    """A converter for argparse: an integer that is not below ``minimum``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {minimum}, found {text!r}"
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


def build_parser() -> Parser:
    """The parser of the main job."""
    parser = Parser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=str(PIPELINE), help="DiT pipeline folder or hub name (reference)")
    add("--device", type=device_of, help="cpu, cuda, mps, ... (the fastest there is)")
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the parameters (float32)")
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
    add("--out", type=folder_to_write, default="results/main", help="folder (results/main)")
    add("--quick", action="store_true", help=f"other defaults: {describe(QUICK)}")
    return parser


def describe(values: dict[str, object]) -> str:
    """Names and values in words."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    if values["quick"]:
        parser.set_defaults(**QUICK)
        values = vars(parser.parse_args(argv))
    del values["quick"]
    values["device"] = values["device"] or choose_device()
    return Options(**values)
