"""Where in a model's code a capture failed."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import FrameType

NOT_OF_MODELS = tuple(
    str(folder)
    for folder in (
        Path(torch.__file__).parent,
        Path(__file__).parent,
        Path(sysconfig.get_path("stdlib")) / "contextlib.py",
        Path(sysconfig.get_path("stdlib")) / "functools.py",
    )
)
"""Files that run between a model's own lines."""


def locate_failure(error: BaseException, kind: type[nn.Module]) -> str:
    """The module and the line of a model that an error comes from; empty for none.

    Such as ``" in blocks.0.attn (transformer.py:92, forward)"``.

    Args:
        error: What was raised.
        kind: The model's class.
    """
    for each in causes(error):
        place = place_of(reversed(list(walk_tb(each.__traceback__))), kind)
        if place:
            return place
    return ""


def place_of(frames: Iterable[tuple[FrameType, int]], kind: type[nn.Module]) -> str:
    """The module and the line of a model in some frames, the innermost first; or nothing."""
    frames = list(frames)
    own = next(((frame, line) for frame, line in frames if is_of_model(frame)), None)
    modules = [module for frame, _ in reversed(frames) for module in module_of(frame)]
    if own is None or not modules:
        return ""
    frame, line = own
    place = f"{Path(frame.f_code.co_filename).name}:{line}, {frame.f_code.co_name}"
    return f" in {path_of(modules, kind)} ({place})"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        hidden = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or hidden


def is_of_model(frame: FrameType) -> bool:
    """Whether a frame runs code that may be a model's."""
    return not frame.f_code.co_filename.startswith(("<", *NOT_OF_MODELS))


def module_of(frame: FrameType) -> Iterator[nn.Module]:
    """The module whose method a frame runs, if it is one's."""
    owner = frame.f_locals.get("self")
    if isinstance(owner, nn.Module):
        yield owner


def path_of(modules: Sequence[nn.Module], kind: type[nn.Module]) -> str:
    """The path of the innermost module in the model, or its class where it has none."""
    for root in modules:
        if type(root) is kind:
            paths = [path for path, module in root.named_modules() if module is modules[-1]]
            if paths and paths[0]:
                return str(paths[0])
    return type(modules[-1]).__name__
