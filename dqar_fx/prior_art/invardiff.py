"""InvarDiff (arXiv 2512.05134), whose plan says what is reused: by step, layer and module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule

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
    named = {**BOOKS, **(names or {})}
    if named.keys() != BOOKS.keys():
        raise ScheduleError(f"names={dict(names or {})!r}: expected names for {list(BOOKS)}")
    masks: dict[str, list[int]] = {}
    for book, name in named.items():
        reused = read_book(book, content[book], 2)
        if len(reused) != len(whole):
            raise ScheduleError(
                f"InvarDiff's {book} has {len(reused)} steps, but {STEPS} {len(whole)}"
            )
        reused = reused | whole[:, None]
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
        try:
            content = json.loads(Path(plan).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ScheduleError(
                f"no plan of InvarDiff can be read from {plan}: {type(error).__name__}: "
                f"{error}. Expected JSON with {STEPS}, {', '.join(BOOKS)}"
            ) from error
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
