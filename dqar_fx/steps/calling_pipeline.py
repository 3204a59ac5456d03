"""The diffusers pipeline that is calling: its scheduler tells the step exactly.

A denoiser is not told where it is put. But while it is called, the pipeline's own method is
among the functions that are running, and the pipeline is its ``self``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline
from torch import nn

from dqar_fx.capture.compiled import find_original

if TYPE_CHECKING:
    from types import CodeType, FrameType

MAX_FRAMES = 40
"""How far up the stack to look; hooks and compilers put a dozen between."""
PASSING_ON = ("torch", "dqar_fx", "accelerate")
"""Packages whose functions are no pipeline's."""


class CallingPipeline:
    """Finds the pipeline that calls; remembers which functions are no pipeline's."""

    def __init__(self) -> None:
        self._others: set[CodeType] = set()

    def find(self, denoiser: nn.Module) -> DiffusionPipeline | None:
        """The innermost pipeline that holds a denoiser and is running; None if none is."""
        frame: FrameType | None = sys._getframe(1)
        for _ in range(MAX_FRAMES):
            if frame is None:
                return None
            if frame.f_code not in self._others:
                pipeline = self._pipeline_of(frame)
                if pipeline is not None and holds(pipeline, denoiser):
                    return pipeline
            frame = frame.f_back
        return None

    def _pipeline_of(self, frame: FrameType) -> DiffusionPipeline | None:
        """The pipeline that runs a frame; other code is not looked at again.

        Reading a frame's variables makes a dict of them, which lives as long as the frame.
        """
        code = frame.f_code
        if is_passing_on(frame) or code.co_varnames[:1] != ("self",) or not code.co_argcount:
            self._others.add(code)
            return None
        owner = frame.f_locals.get("self")
        if isinstance(owner, DiffusionPipeline):
            return owner
        self._others.add(code)
        return None


def holds(pipeline: DiffusionPipeline, denoiser: nn.Module) -> bool:
    """Whether a denoiser is one of a pipeline's components, or compiled to be one."""
    modules = (held for held in vars(pipeline).values() if isinstance(held, nn.Module))
    return any(find_original(module) is denoiser for module in modules)


def is_passing_on(frame: FrameType, packages: tuple[str, ...] = PASSING_ON) -> bool:
    """Whether a frame is of a package that calls on behalf of others."""
    name: str = frame.f_globals.get("__name__") or ""
    return name.partition(".")[0] in packages
