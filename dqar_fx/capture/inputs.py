"""What a call passes: flat leaves, their signature, and which of them plays which part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.conditioning_nodes import TIMESTEP_NAMES, find_latent

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from torch import fx


@dataclass(frozen=True)
class Roles:
    """Positions among the leaves of a call.

    Attributes:
        timestep: The timestep, or None for a model that has none.
        latent: The tensor that is denoised.
        conditioning: All other tensors.
    """

    timestep: int | None
    latent: int
    conditioning: tuple[int, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Roles:
        """Read the roles off the names of a captured graph's inputs."""
        inputs = gm.graph.find_nodes(op="placeholder")
        names = [str(node.target) for node in inputs]
        timestep = next((names.index(n) for n in TIMESTEP_NAMES if n in names), None)
        found = find_latent(gm)
        latent = 0 if found is None else inputs.index(found)
        tensors = [
            i for i, n in enumerate(inputs) if isinstance(n.meta.get("val"), torch.Tensor)
        ]
        others = tuple(i for i in tensors if i not in (timestep, latent))
        return cls(timestep, latent, others)


def signature_of(leaves: Sequence[Any], spec: pytree.TreeSpec) -> Hashable:
    """What a captured graph is good for.

    Which arguments are given, tensors' layouts and dtypes, plain values, autocast.
    """
    tensors = tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
        if isinstance(leaf, torch.Tensor)
        else (type(leaf), repr(leaf))
        for leaf in leaves
    )
    return spec, tensors, casts_of(leaves)


def casts_of(leaves: Sequence[Any]) -> tuple[torch.dtype, ...]:
    """What autocast, where it is on, casts to on the devices of a call."""
    return tuple(map(torch.get_autocast_dtype, autocast_devices(leaves)))


def autocast_devices(leaves: Sequence[Any]) -> tuple[str, ...]:
    """Types of the devices of a call for which autocast is on."""
    devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return tuple(
        device
        for device in sorted(devices)
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    )


def refuse_gradients(leaves: Sequence[Any]) -> None:
    """Raise if a gradient is expected through the call."""
    if torch.is_grad_enabled() and any(
        isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves
    ):
        raise DqarError(
            "an input requires a gradient, but a transformed denoiser is for inference only. "
            "Detach the input, or call the original model"
        )
