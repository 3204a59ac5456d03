"""InvarDiff (arXiv 2512.05134), whose plan says what is reused: by step, layer and module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule

from .decisions import read_json
from .smoothcache import read_smoothcache

STEPS = "step_cache_book"
BOOKS = {"msa_cache_book": "attn1", "mlp_cache_book": "ff"}
"""Books of a plan for DiT, and what a DiT of diffusers calls their modules."""


def read_invardiff(
    plan: str | Path | Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> Schedule:
    """Read a plan that InvarDiff has made for a DiT.

    A plan has a book of steps that are reused as a whole, and one for attention and one for
    feed-forward: for each step and layer, whether it is reused. At a step that is reused as a
    whole all modules are here, while InvarDiff hands the last computed hidden states to the
    last layer: what is before the blocks, and their gates, are those of the step here, and of
    the computed one there. Plans for Flux have other books and cannot be read.

    Args:
        plan: The JSON file, or its content.
        names: What the model calls attention and feed-forward, where that is not what a DiT
            of diffusers does: ``{"msa_cache_book": "attn", "mlp_cache_book": "mlp"}``.

    Returns:
        A schedule for the sites whose paths end in these names.

    Raises:
        ScheduleError: The plan cannot be read, lacks a book, has books of different sizes or
            entries that are neither true nor false, or reuses at the first step; when the
            table is made, also a layer that the model does not have.

    Source:
        Wu 2025, arXiv 2512.05134; zihaowu25/InvarDiff, DiT/models/dynamic_cache.py and
        DiT/cache_books.
    """
    content = read_plan(plan)
    whole = read_book(STEPS, content[STEPS], 1)
    given = names if isinstance(names, Mapping) else dict.fromkeys(names or ())
    named = {**BOOKS, **given}
    if named.keys() != BOOKS.keys() or len({*named.values()} - {None}) < len(BOOKS):
        raise ScheduleError(
            f"names={names!r}: expected a mapping of {', '.join(BOOKS)} to names of their own"
        )
    books = {book: read_book(book, content[book], 2) for book in BOOKS}
    shapes = {book: list(each.shape) for book, each in books.items()}
    wanted = [len(whole), next(iter(books.values())).shape[1]]
    if any(shape != wanted for shape in shapes.values()):
        raise ScheduleError(
            f"books of InvarDiff have to be of equal size, but {STEPS} has {len(whole)} "
            f"steps, and steps and layers of the others are {shapes}"
        )
    masks: dict[str, list[int]] = {}
    for book, name in named.items():
        reused = books[book] | whole[:, None]
        masks |= {
            f"{name}-{layer}": (~column).astype(int).tolist()
            for layer, column in enumerate(reused.T)
        }
    return read_smoothcache(masks)


def read_plan(plan: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the books of a file, or of its content.

    Raises:
        ScheduleError: The file cannot be read, or a book is missing.
    """
    content: Any = plan
    if not isinstance(plan, Mapping):
        expected = f"JSON with {STEPS}, {', '.join(BOOKS)}"
        content = read_json(plan, "plan of InvarDiff", expected)
    found = list(content) if isinstance(content, Mapping) else type(content).__name__
    if not isinstance(content, Mapping) or not {STEPS, *BOOKS} <= content.keys():
        raise ScheduleError(
            f"a plan of InvarDiff for a DiT has {STEPS}, {', '.join(BOOKS)}; found {found}"
        )
    return content


def read_book(name: str, values: Any, dimensions: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a book: bool ``[steps]`` or ``[steps, layers]``.

    Raises:
        ScheduleError: It is something else.
    """
    try:
        book = np.array(values)
    except ValueError:  # rows of different lengths
        book = np.array(None)
    if book.dtype != bool or book.ndim != dimensions or not book.size:
        shape = "[steps, layers]" if dimensions == 2 else "[steps]"
        raise ScheduleError(f"InvarDiff's {name} has to be true or false, {shape}")
    return book
