"""Multiply-accumulates of a step and of a trajectory, without computing anything.

The model is copied to the meta device, where operators have shapes and no values, and runs
there under PyTorch's own counter. A transformed model is counted in the same way, row by row:
what is counted is what its steps execute.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import dqar_fx

aten = torch.ops.aten
Shape = tuple[int, ...]
CONSTANT = ("class_labels", "encoder_hidden_states")
"""Arguments that are the same tensor at every step of a trajectory."""


def count_attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Operations of a fused attention, from the shapes of its arguments."""
    flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return flops


UNKNOWN_TO_TORCH = {aten._scaled_dot_product_flash_attention_for_cpu: count_attention}
"""Formulas for operators that PyTorch's counter takes to be free."""


def count_macs(run: Callable[[], object]) -> int:
    """Multiply-accumulates that a function executes, on any device."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        run()
    flops: int = counter.get_total_flops()
    return flops // 2


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one step of the original, and of trajectories."""

    untransformed_step: int
    trajectories: tuple[int, ...]


@torch.no_grad()
def count_trajectories(
    model: nn.Module, call: dict[str, torch.Tensor], schedules: Sequence[dqar_fx.Schedule]
) -> Macs:
    """Count one step of a model, and a trajectory of each schedule.

    Args:
        model: The untransformed model, on any device.
        call: Keyword arguments of one call.
        schedules: What to count.
    """
    meta, inputs = to_meta(model), to_meta_call(call)
    probe = dqar_fx.transform(meta, dqar_fx.Schedule.compute_all(1))
    probe.prepare(**inputs)
    return Macs(
        untransformed_step=count_macs(lambda: meta(**inputs)),
        trajectories=count_schedules(probe, inputs, schedules),
    )


@torch.no_grad()
def count_schedules(
    probe: dqar_fx.Denoiser,
    inputs: dict[str, torch.Tensor],
    schedules: Sequence[dqar_fx.Schedule],
) -> tuple[int, ...]:
    """Count a trajectory of each schedule with a transformed model on the meta device."""
    tables = [reuse_masks(schedule.resolve(probe.table.sites)) for schedule in schedules]
    cost = count_masks(probe, inputs, {mask for masks in tables for mask in masks})
    return tuple(sum(cost[mask] for mask in masks) for masks in tables)


def reuse_masks(table: dqar_fx.BranchTable) -> list[tuple[bool, ...]]:
    """Per step, which sites reuse: storing is no arithmetic."""
    return [tuple(row) for row in table.is_read.tolist()]


def count_masks(
    probe: dqar_fx.Denoiser, inputs: dict[str, torch.Tensor], masks: set[tuple[bool, ...]]
) -> dict[tuple[bool, ...], int]:
    """Count one step for each mask, in one made-up trajectory that begins by computing all."""
    first = (False,) * len(probe.table.sites)
    steps = [first, *sorted(masks - {first})]
    denoiser = probe.with_schedule(dqar_fx.Schedule.from_actions(steps))
    cost = {}
    for step, mask in enumerate(steps):
        fresh = {k: v if k in CONSTANT else v.clone() for k, v in inputs.items()}
        with denoiser.cache_context("count", step_index=step):
            cost[mask] = count_macs(lambda: denoiser(**fresh))  # noqa: B023 - called at once
    return cost


def to_meta_call(call: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keyword arguments of a call on the meta device."""
    return {name: value.to("meta").contiguous() for name, value in call.items()}


def to_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying a parameter."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(t): t.detach().to("meta") for t in tensors}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(memo[id(parameter)], requires_grad=False)
    return copy.deepcopy(model, memo)
