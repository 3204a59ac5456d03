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

from dqar_fx.capture.adapters import adapter_state, find_layers
from dqar_fx.capture.compiled import find_original, plain_modules
from dqar_fx.capture.quantised import open_tensor
from dqar_fx.denoiser.denoiser import Denoiser
from dqar_fx.denoiser.offload import hand_hook_on
from dqar_fx.errors import DqarError
from dqar_fx.passes.support.equal_tensors import memory_of
from dqar_fx.schedule.schedule import as_schedule
from dqar_fx.transform import transform

from .watch import give_class_back, is_watchable, unwatch, watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from dqar_fx.schedule.schedule import Schedule

PLACES = ("transformer", "transformer_2", "unet")
"""Components of a pipeline that are denoisers."""

Pipe = TypeVar("Pipe")


@dataclass
class Enabled:
    """What `enable` has changed of a pipeline.

    Attributes:
        originals: The models, by component.
        scheduler: The scheduler that is watched; None if it cannot be.
    """

    originals: dict[str, nn.Module]
    scheduler: Any = field(repr=False, default=None)


_ENABLED: WeakKeyDictionary[Any, Enabled] = WeakKeyDictionary()


def enable(pipe: Pipe, schedule: Schedule | str = "balanced", **options: Any) -> Pipe:
    """Let a stock diffusers pipeline reuse attention; no other line of its use changes.

    Each of its denoisers is transformed, and stands where the model stood. The step is that of
    the pipeline's own scheduler, which is watched. A pipeline that is made of its components
    has its denoisers, and is not to be enabled again.

    Args:
        pipe: A pipeline with a ``transformer``, a ``transformer_2`` or a ``unet``.
        schedule: Which site reuses its output at which step; without a number of steps, such
            as ``Schedule.interval(every=2)``, it serves any. Or the name of a schedule tier,
            see `Schedule.tier`.
        **options: As for `dqar_fx.transform`.

    Returns:
        The pipeline itself.

    Raises:
        DqarError: It is no pipeline with a denoiser, or enabled already.
        CaptureError: As for `transform`, and so on.
    """
    schedule = as_schedule(schedule)
    if pipe in _ENABLED:
        raise DqarError(
            f"this {type(pipe).__name__} is enabled already: dqar_fx.disable(pipe) first; or, "
            "for another schedule, pipe.transformer = pipe.transformer.with_schedule(schedule)"
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
        if isinstance(find_original(model), Denoiser):
            raise DqarError(
                f"{type(pipe).__name__}.{place} is transformed already, by itself or in "
                "another pipeline, and reuses here, too. For another schedule use "
                f"pipe.{place} = pipe.{place}.with_schedule(schedule); or give the pipeline "
                "its original model, which dqar_fx.disable(...) of the other one gives back"
            )
    made = {place: transform(model, schedule, **options) for place, model in models.items()}
    scheduler = getattr(pipe, "scheduler", None)
    watched = scheduler if is_watchable(scheduler) else None
    _ENABLED[pipe] = Enabled(models, watched)
    for place, denoiser in made.items():
        setattr(pipe, place, denoiser)
        hand_hook_on(find_original(models[place]), denoiser, pipe)
        denoiser.follow_scheduler(watched)
    if watched is not None:
        watch(watched)
    return pipe


def disable(pipe: Pipe) -> Pipe:
    """Give a pipeline its original models back, and its scheduler its own methods.

    A denoiser of another schedule, which stands there by now, goes as well; a component that
    was replaced by something else is left as it is. If the pipeline was moved or converted
    meanwhile, its models are where their denoisers are; if modules of a denoiser were added,
    replaced or taken away, as LoRA does, its model has them.

    Returns:
        The pipeline itself.

    Raises:
        DqarError: It is not enabled.
    """
    if pipe not in _ENABLED:
        raise DqarError(
            f"this {type(pipe).__name__} is not enabled: expected a pipeline that was given "
            "to dqar_fx.enable(pipe, schedule)"
        )
    enabled = _ENABLED[pipe]
    for place, denoiser in find_denoisers(pipe).items():
        if place in enabled.originals:
            denoiser.reset()
            denoiser.follow_scheduler(None)
            follow_modules(enabled.originals[place], denoiser)
            hand_hook_on(denoiser, find_original(enabled.originals[place]), pipe)
            setattr(pipe, place, enabled.originals[place])
    if enabled.scheduler is not None:
        unwatch(enabled.scheduler)
    give_class_back(getattr(pipe, "scheduler", None))  # another one, by type(...).from_config
    del _ENABLED[pipe]
    return pipe


def follow_modules(original: nn.Module, denoiser: Denoiser) -> None:
    """Let a model have the modules of its denoiser, or their tensors if it has the same."""
    fork = denoiser.lend_model()
    own, theirs = plain_modules(original), plain_modules(fork)
    is_alike = [(n, type(m)) for n, m in own.items()] == [
        (n, type(m)) for n, m in theirs.items()
    ]
    if is_alike and describe_adapters(original) == describe_adapters(fork):
        follow_tensors(list(own.values()), list(theirs.values()))
    else:
        vars(find_original(original)).update(vars(fork))


def describe_adapters(model: nn.Module) -> list[tuple[object, ...]]:
    """What layers do with their adapters, and the weights that these may be merged into."""
    return [
        (*adapter_state(layer), *map(memory_of, layer.get_base_layer().parameters()))
        for _, layer in find_layers(model)
    ]


def follow_tensors(originals: Sequence[nn.Module], forks: Sequence[nn.Module]) -> None:
    """Let modules have the parameters and buffers of others that show other memory."""
    made: dict[int, nn.Parameter] = {}
    for module, fork in zip(originals, forks, strict=True):
        for name, tensor in fork._parameters.items():
            own = module._parameters.get(name)
            if own is None or tensor is None or show_same_memory(own, tensor):
                continue
            if id(tensor) not in made:
                is_plain = type(tensor) is nn.Parameter
                made[id(tensor)] = (
                    nn.Parameter(tensor.detach(), requires_grad=own.requires_grad)
                    if is_plain
                    else tensor
                )
            module._parameters[name] = made[id(tensor)]
        for name, buffer in fork._buffers.items():
            before = module._buffers.get(name)
            if before is not None and buffer is not None:
                module._buffers[name] = before if show_same_memory(before, buffer) else buffer


def show_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors, or those that they consist of, are the same views of memory."""
    shown = [[memory_of(part) for _, part in open_tensor("", each)] for each in (one, other)]
    return shown[0] == shown[1]


@contextmanager
def enabled(
    pipe: Pipe, schedule: Schedule | str = "balanced", **options: Any
) -> Iterator[Pipe]:
    """`enable` a pipeline for as long as a ``with`` block, and `disable` it then."""
    enable(pipe, schedule, **options)
    try:
        yield pipe
    finally:
        if pipe in _ENABLED:
            disable(pipe)


def find_denoisers(pipe: Any) -> dict[str, Denoiser]:
    """The denoisers of a pipeline that are transformed, by component."""
    found = {place: getattr(pipe, place, None) for place in PLACES}
    plain = {p: find_original(m) for p, m in found.items() if isinstance(m, nn.Module)}
    return {place: each for place, each in plain.items() if isinstance(each, Denoiser)}
