"""What a call passes: flat leaves, their signature, and which of them plays which part."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from dqar_fx.errors import CaptureError, DqarError
from dqar_fx.passes.support.conditioning_nodes import find_latents, find_timestep

from .patterns import PLAIN

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from torch import fx

    from dqar_fx.passes import TensorSpec


PROMPT_NAMES = re.compile(
    r"^(y|c|labels?|context|cond)$|encoder_|prompt|text|caption|pooled|class_labels|cap_feats"
)
"""Names of arguments in the field that are prompts."""
TAKEN = (torch.Tensor, nn.Module, torch.ScriptObject, *PLAIN)
"""Kinds of leaves that a call of a graph may have."""


@dataclass(frozen=True)
class Roles:
    """Positions among the leaves of a call.

    Attributes:
        timestep: The timestep, or None for a model that has none.
        latents: The tensors that are denoised: one, or a list of them.
        conditioning: All other tensors.
        names: Per tensor of the conditioning, its argument.
        prompts: Per tensor of the conditioning, whether its name says that it is a prompt.
    """

    timestep: int | None
    latents: tuple[int, ...]
    conditioning: tuple[int, ...]
    names: tuple[str, ...] = ()
    prompts: tuple[bool, ...] = ()

    @property
    def latent(self) -> int:
        """The first of the latents, by whose rows samples are counted."""
        return self.latents[0]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Roles:
        """Read the roles off the names of a captured graph's inputs."""
        inputs = gm.graph.find_nodes(op="placeholder")
        names = [str(node.target) for node in inputs]
        found = find_timestep(names)
        timestep = None if found is None else names.index(found)
        latents = tuple(map(inputs.index, find_latents(gm))) or (0,)
        tensors = [
            i for i, n in enumerate(inputs) if isinstance(n.meta.get("val"), torch.Tensor)
        ]
        others = tuple(i for i in tensors if i != timestep and i not in latents)
        known = tuple(names[i] for i in others)
        return cls(timestep, latents, others, known, tuple(map(is_prompt, known)))


def is_prompt(name: str) -> bool:
    """Whether an input is a prompt by its name: text, labels, or what stands for them."""
    return bool(PROMPT_NAMES.search(name))


def refuse_kinds(named: Mapping[str, Any]) -> None:
    """Raise for an argument that export knows no way to look into.

    Args:
        named: The arguments of a call, by name.
    """
    for name, value in named.items():
        for leaf in pytree.tree_leaves(value):
            if not isinstance(leaf, TAKEN):
                raise CaptureError(
                    f"{name} is or has a {type(leaf).__qualname__}, of which no graph has an "
                    "input. Expected tensors, numbers, texts, and lists, tuples and "
                    "dictionaries of them. Register it as a container of its tensors with "
                    "torch.utils._pytree.register_pytree_node, or as a constant with "
                    "register_constant, before the first call"
                )


def signature_of(leaves: Sequence[Any], spec: pytree.TreeSpec) -> Hashable:
    """What a captured graph is good for.

    Which arguments are given, tensors' layouts and dtypes, plain values, autocast. Of objects
    that no graph can take the class counts.
    """
    return spec, tuple(map(describe_leaf, leaves)), casts_of(leaves)


def describe_leaf(leaf: Any) -> Hashable:
    """What of an input a graph depends on."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    if isinstance(leaf, PLAIN):
        return type(leaf), repr(leaf)
    return type(leaf).__qualname__, type(leaf).__module__


def casts_of(leaves: Sequence[Any]) -> tuple[torch.dtype, ...]:
    """What autocast, where it is on, casts to on the devices of a call."""
    return tuple(map(torch.get_autocast_dtype, autocast_devices(leaves)))


def autocast_devices(leaves: Sequence[Any]) -> tuple[str, ...]:
    """Types of the devices of a call for which autocast is on."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return tuple(filter(torch.is_autocast_enabled, find_devices(tensors)))


def find_devices(tensors: Sequence[torch.Tensor | TensorSpec]) -> tuple[str, ...]:
    """Types of the devices of some tensors, as far as autocast knows them."""
    devices = sorted({tensor.device.type for tensor in tensors})
    return tuple(filter(torch.amp.is_autocast_available, devices))


def refuse_gradients(leaves: Sequence[Any]) -> None:
    """Raise if a gradient is expected through the call."""
    if torch.is_grad_enabled() and any(
        isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves
    ):
        raise DqarError(
            "an input requires a gradient, but a transformed denoiser is for inference only. "
            "Detach the input, or call the original model"
        )
