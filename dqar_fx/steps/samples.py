"""Whether the samples of a call go through their steps together.

A timestep may be given for each sample, frame or token. Some may stand still, as the given
frames of image-to-video do; all others must go from one timestep to one other. Where they do
not, as in diffusion forcing or where requests of different steps share a batch, no row of the
table is that of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .timesteps import is_single

if TYPE_CHECKING:
    from .streams import RunStream


def move_together(stream: RunStream, timestep: Any) -> bool:
    """Note the timesteps of a stream's call; whether one row of the table is that of all.

    Once it is not, it is not any more in this run: nothing tells how far each sample has come.
    """
    if not stream.is_parted:
        stream.is_parted = not has_one_row(stream, timestep)
    return not stream.is_parted


def has_one_row(stream: RunStream, timestep: Any) -> bool:
    """Note the timesteps of a stream's call; whether its samples are still at one step."""
    if not isinstance(timestep, torch.Tensor) or timestep.is_meta or is_single(timestep):
        was_mixed, stream.times, stream.held = stream.times is not None, None, None
        return not was_mixed
    low, high = torch.stack(torch.aminmax(timestep)).tolist()
    before, is_first = stream.times, stream.is_new
    if low == high and before is None:
        return True
    stream.times = timestep.clone() if low != high else None
    if before is None:
        return is_first  # a stream whose samples were together until now, and are not any more
    return has_one_step(stream, before, timestep)


def has_one_step(stream: RunStream, before: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether all samples that go on do so from one timestep to one other."""
    if before.shape != now.shape:
        return False
    is_moved = before != now
    if not bool(is_moved.any()):
        return True
    is_held = ~is_moved
    starts, ends = torch.unique(before[is_moved]), torch.unique(now[is_moved])
    if len(starts) > 1 or len(ends) > 1 or bool((before[is_held] == starts).any()):
        stream.held = None
        return False
    was_held, stream.held = stream.held, is_held
    return was_held is None or torch.equal(was_held, is_held)


def is_on_host(timestep: Any) -> bool:
    """Whether to read a timestep waits for nothing."""
    return isinstance(timestep, torch.Tensor) and timestep.device.type == "cpu"
