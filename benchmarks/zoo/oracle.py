"""The oracle: an untouched model whose sites' outputs plain hooks keep and replace.

It shares no code with the package. What an attention gives is kept as it is; of a block what
it adds to those of its inputs that have the shapes of its outputs, or to those that are named.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

COMPUTE, STORE, REUSE = 0, 1, 2
Tensors = list[torch.Tensor]
Bases = Sequence[torch.Tensor | None]
"""What each output adds to, if it does."""


@dataclass
class Oracle:
    """Runs a model step by step.

    Attributes:
        model: The model, which has its hooks during a call only.
        is_residual: By site, whether it is a block. A module that is called more often than
            once has ``@1`` and so on behind the path of its further calls.
        streams: By block, for each tensor that it gives the input that it adds to, or a dash
            for none; for blocks where shapes do not tell.
        kept: By site, what was kept last.
    """

    model: nn.Module
    is_residual: Mapping[str, bool]
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kept: dict[str, Tensors] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, actions: Mapping[str, int], inputs: Mapping[str, Any]) -> Tensors:
        """One step; what each site does, by its path."""
        calls: Counter[str] = Counter()
        with ExitStack() as stack:
            for path in {site.partition("@")[0] for site in actions}:
                hook = self.hook(path, actions, calls)
                module = self.model.get_submodule(path)
                handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            return tensors(self.model(**inputs))

    def hook(
        self, path: str, actions: Mapping[str, int], calls: Counter[str]
    ) -> Callable[..., Any]:
        """The hook of a module."""

        def replace(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            number = calls[path]
            calls[path] += 1
            site = f"{path}@{number}" if number else path
            if site not in actions:
                return output
            if path in self.streams:
                given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                bases = [given.get(name) for name in self.streams[path]]
            elif self.is_residual[site]:
                bases = find_bases(tensors((args, kwargs)), tensors(output))
            else:
                bases = [None] * len(tensors(output))
            return self.act(site, actions[site], bases, output)

        return replace

    def act(self, site: str, action: int, bases: Bases, output: Any) -> Any:
        """What a site gives in the place of its outputs."""
        if action == COMPUTE:
            return output
        leaves, spec = pytree.tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        outputs = [leaves[i] for i in places]
        if action == STORE:
            self.kept[site] = [each.clone() for each in subtract(outputs, bases)]
            return output
        for i, value in zip(places, add(self.kept[site], bases), strict=True):
            leaves[i] = value
        return pytree.tree_unflatten(leaves, spec)


def tensors(tree: Any) -> Tensors:
    """All tensors of a structure."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def find_bases(inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> Tensors:
    """For each output, the first input of its shape and dtype that no other has.

    Raises:
        ValueError: There is none.
    """
    remaining, bases = list(inputs), []
    for output in outputs:
        fits = [i for i, each in enumerate(remaining) if is_like(each, output)]
        if not fits:
            raise ValueError(f"the oracle finds no input of shape {list(output.shape)}")
        bases.append(remaining.pop(fits[0]))
    return bases


def is_like(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both have one shape and dtype."""
    return one.shape == other.shape and one.dtype == other.dtype


def subtract(outputs: Tensors, bases: Bases) -> Tensors:
    """What is kept of outputs."""
    pairs = zip(outputs, bases, strict=True)
    return [output if base is None else output - base for output, base in pairs]


def add(kept: Tensors, bases: Bases) -> Tensors:
    """What is given again of what was kept."""
    pairs = zip(kept, bases, strict=True)
    return [each if base is None else base + each for each, base in pairs]
