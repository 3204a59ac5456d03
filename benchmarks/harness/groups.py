"""Groups of pictures on disk: what is missing is generated, whatever interrupted the run."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness.rows import noted_failure
from benchmarks.harness.store import Piece, Pieces

Generate = Callable[[int, Any], torch.Tensor]
"""Gives the pictures of a group, uint8, and moves a progress bar."""
Opened = Callable[[str], AbstractContextManager[Generate]]
"""Gives, by the name of a row, what generates its pictures."""


def fill_groups(pieces: Pieces, group_size: int, opened: Opened) -> dict[str, str]:
    """Generate the pictures that are not on disk yet.

    Args:
        pieces: Where they belong.
        group_size: Pictures in a group.
        opened: Entered once per row that lacks some.

    Returns:
        What went wrong, by row.

    Raises:
        InputError: What is on disk is of another run.
    """
    missing = {
        name: [group for group, piece in enumerate(groups) if not piece.is_finished()]
        for name, groups in pieces.items()
    }
    total = sum(map(len, pieces.values()))
    left = sum(map(len, missing.values()))
    errors: dict[str, str] = {}
    with tqdm(
        total=total * group_size, initial=(total - left) * group_size, unit="image"
    ) as bar:
        for name, groups in missing.items():
            if not groups:
                continue
            with (
                noted_failure(name, partial(errors.__setitem__, name)),
                opened(name) as generate,
            ):
                fill_some(name, generate, groups, pieces[name], bar)
    return errors


def fill_some(
    name: str, generate: Generate, groups: Sequence[int], pieces: Sequence[Piece], bar: Any
) -> None:
    """Generate and write some groups of one row."""
    for group in groups:
        bar.set_description(f"{name}, group {group + 1} of {len(pieces)}")
        start = time.perf_counter()
        images = generate(group, bar)
        took_s = time.perf_counter() - start
        pieces[group].write({"images": images}, {"took_s": took_s})
