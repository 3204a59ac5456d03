"""One line for a stock pipeline: its denoisers are transformed, its scheduler is watched.

A pipeline's denoisers are its ``transformer``, ``transformer_2`` and ``unet``. What is put in
their places, and what was there, is remembered for as long as the pipeline lives.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.errors import DqarError
from dqar_fx.transform import transform

from .watch import unwatch, watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dqar_fx.schedule.schedule import Schedule

PLACES = ("transformer", "transformer_2", "unet")
"""Components of a pipeline that are denoisers."""

Pipe = TypeVar("Pipe")


@dataclass
class Enabled:
    """What `enable` has changed of a pipeline.

    Attributes:
        originals: The models, by component.
        denoisers: What stands in their places.
        scheduler: The scheduler that is watched; None if it cannot be.
    """

    originals: dict[str, nn.Module]
    denoisers: dict[str, Denoiser]
    scheduler: Any = field(repr=False, default=None)


_ENABLED: WeakKeyDictionary[Any, Enabled] = WeakKeyDictionary()


def enable(pipe: Pipe, schedule: Schedule, **options: Any) -> Pipe:
    """Let a stock diffusers pipeline reuse attention; no other line of its use changes.

    Each of its denoisers is transformed, and stands where the model stood. The step is that of
    the pipeline's own scheduler, which is watched. Several pipelines may share components: a
    model that another one has enabled already keeps the denoiser that it has there.

    Args:
        pipe: A pipeline with a ``transformer``, a ``transformer_2`` or a ``unet``.
        schedule: Which site reuses its output at which step; without a number of steps, such as
            ``Schedule.interval(every=2)``, it serves any.
        **options: As for `dqar_fx.transform`.

    Returns:
        The pipeline itself.

    Raises:
        DqarError: It is no pipeline with a denoiser, or enabled already.
        CaptureError: As for `transform`, and so on.
    """
    if pipe in _ENABLED:
        raise DqarError(
            f"this {type(pipe).__name__} is enabled already: dqar_fx.disable(pipe) first, or "
            "use pipe.transformer.with_schedule(schedule) for another schedule of it"
        )
    found = {place: getattr(pipe, place, None) for place in PLACES}
    models = {place: model for place, model in found.items() if isinstance(model, nn.Module)}
    if not models:
        raise DqarError(
            f"{type(pipe).__name__} has no denoiser: expected a diffusers pipeline whose "
            f"{', '.join(PLACES[:-1])} or {PLACES[-1]} is a module. To transform a model "
            "alone, use dqar_fx.transform(model, schedule)"
        )
    for place, model in models.items():
        if isinstance(model, Denoiser):
            raise DqarError(
                f"{type(pipe).__name__}.{place} is transformed already: give the pipeline its "
                "original model, or dqar_fx.disable(...) the pipeline that it was enabled in"
            )
    made = {place: transform(model, schedule, **options) for place, model in models.items()}
    scheduler = getattr(pipe, "scheduler", None)
    _ENABLED[pipe] = Enabled(models, made, scheduler)
    for place, denoiser in made.items():
        setattr(pipe, place, denoiser)
    if scheduler is not None and hasattr(scheduler, "__dict__"):
        watch(scheduler)
    return pipe


def disable(pipe: Pipe) -> Pipe:
    """Give a pipeline its original models back, and its scheduler its own methods.

    A component that was replaced since by something else is left as it is.

    Returns:
        The pipeline itself.

    Raises:
        DqarError: It is not enabled.
    """
    enabled = find_enabled(pipe)
    for place, original in enabled.originals.items():
        if getattr(pipe, place, None) is enabled.denoisers[place]:
            setattr(pipe, place, original)
        enabled.denoisers[place].reset()
    if enabled.scheduler is not None:
        unwatch(enabled.scheduler)
    del _ENABLED[pipe]
    return pipe


@contextmanager
def enabled(pipe: Pipe, schedule: Schedule, **options: Any) -> Iterator[Pipe]:
    """`enable` a pipeline for as long as a ``with`` block, and `disable` it then."""
    enable(pipe, schedule, **options)
    try:
        yield pipe
    finally:
        if pipe in _ENABLED:
            disable(pipe)


def find_enabled(pipe: Any) -> Enabled:
    """What `enable` has changed of a pipeline.

    Raises:
        DqarError: Nothing, since it is not enabled.
    """
    try:
        return _ENABLED[pipe]
    except (KeyError, TypeError):
        raise DqarError(
            f"this {type(pipe).__name__} is not enabled: expected a pipeline that was given to "
            "dqar_fx.enable(pipe, schedule)"
        ) from None
