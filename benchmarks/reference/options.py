"""The command line that all trainers share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.reference.training import Options

DEFAULT_OUT = Path("results/reference")


def parse_training_options(
    argv: Sequence[str] | None,
    *,
    description: str,
    steps: int,
    batch_size: int,
    shape: dict[str, int] | None = None,
) -> Options:
    """Parse the command line of a trainer and set the number of threads.

    Args:
        argv: The arguments; None takes those of the process.
        description: What the script does, for ``--help``.
        steps: Default of ``--steps``.
        batch_size: Default of ``--batch-size``.
        shape: Sizes of the model that may be chosen, with their defaults.

    Returns:
        The options of the run.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=DEFAULT_OUT, help="folder that the scripts share")
    add("--steps", type=positive_int, default=steps, help="length of the run and its schedule")
    add("--batch-size", type=positive_int, default=batch_size, help="images per step")
    add("--seed", type=int, default=0, help="seed of weights, batches and noise")
    add("--checkpoint-every", type=positive_int, default=200, help="steps between checkpoints")
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue from the checkpoint in --out if there is one",
    )
    add("--stop-at", type=positive_int, help="end this session early, at this step")
    add("--threads", type=positive_int, default=2, help="CPU threads; results depend on them")
    sizes = shape or {}
    for name, size in sizes.items():
        add(
            f"--{name.replace('_', '-')}", type=positive_int, default=size, help="of the model"
        )
    values = vars(parser.parse_args(argv))
    torch.set_num_threads(values.pop("threads"))
    chosen = {name: values.pop(name) for name in sizes}
    return Options(**values, shape=chosen)


def positive_int(text: str) -> int:
    """Convert text to an integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {value}")
    return value
