"""The oracle: an untouched pipeline whose attention outputs plain hooks keep and replace."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.stock.watch import Visit
from dqar_fx import Action

Tensors = tuple[torch.Tensor, ...]
ActionsByPath = Mapping[str, NDArray[np.int8]]
"""What a site does at each row, by its module path."""


@dataclass
class Follower:
    """Does at each call of a denoiser what a row of its table says.

    A site that should reuse what its stream has not kept computes, and keeps it. A call that
    has no row computes, and keeps nothing; so does a site that leaves out its attention, as
    guidance by perturbed attention lets it.

    Attributes:
        table: What each site does.
        visit: The call that is under way.
        kept: Per site and samples of a call, the latest row that was kept, and its outputs.
        cold: For each call so far, the sites that had nothing to reuse.
        num_attentions: Fused attentions so far.
        attending: Sites that called one, at any call.
    """

    table: ActionsByPath
    visit: Visit | None = None
    kept: dict[tuple[str, Hashable], tuple[int, Tensors]] = field(default_factory=dict)
    cold: list[set[str]] = field(default_factory=list)
    num_attentions: int = 0
    attending: set[str] = field(default_factory=set)

    def begin(self, visit: Visit) -> None:
        """A call begins."""
        self.visit = visit
        self.cold.append(set())

    def leaves_out(self, path: str, num_before: int) -> bool:
        """Whether a site left out its attention; ``num_before`` were called when it began."""
        if self.num_attentions > num_before:
            self.attending.add(path)
        return self.num_attentions == num_before and path in self.attending

    def end_site(self, path: str, outputs: Tensors) -> Tensors:
        """What a site gives in the place of its outputs."""
        if self.visit.row is None:
            return outputs
        action = Action(int(self.table[path][self.visit.row]))
        if action == Action.REUSE:
            kept = self.find(path, outputs)
            if kept is not None:
                return kept
            self.cold[-1].add(path)
        if action in (Action.STORE, Action.REUSE):
            self.keep(path, outputs)
        return outputs

    def keep(self, path: str, outputs: Tensors) -> None:
        """Copies outputs, with their row."""
        kept = self.visit.row, tuple(map(torch.clone, outputs))
        self.kept[path, self.visit.samples] = kept

    def find(self, path: str, outputs: Tensors) -> Tensors | None:
        """What was kept of such outputs for this call's samples; None if nothing was.

        A batch that shrinks or grows is another one, which has kept nothing yet; nor has one
        that was away at the row that stores what is read now.
        """
        row, kept = self.kept.get((path, self.visit.samples), (-1, ()))
        stored = np.nonzero(self.table[path][: self.visit.row] == Action.STORE)[0]
        shapes = [output.shape for output in outputs]
        if row < stored.max(initial=0) or [each.shape for each in kept] != shapes:
            return None
        return tuple(map(torch.clone, kept))


@contextmanager
def following(
    pipe: DiffusionPipeline, tables: Mapping[str, ActionsByPath], visits: Sequence[Visit]
) -> Iterator[dict[str, Follower]]:
    """Lets the denoisers of an untouched pipeline follow tables while inside.

    Args:
        pipe: The pipeline.
        tables: By the name of the denoiser in the pipeline.
        visits: Where each call belongs, in their order.
    """
    remaining = iter(visits)
    followers = {name: Follower(table) for name, table in tables.items()}
    with ExitStack() as stack:
        for name, follower in followers.items():
            model = getattr(pipe, name)
            begin = begin_call(follower, name, remaining)
            stack.callback(model.register_forward_pre_hook(begin).remove)
            for path in follower.table:
                site, (begin, end) = model.get_submodule(path), hooks_of_site(follower, path)
                stack.callback(site.register_forward_pre_hook(begin).remove)
                stack.callback(site.register_forward_hook(end).remove)
        stack.enter_context(CountAttention([*followers.values()]))
        yield followers
    if next(remaining, None) is not None:
        raise ValueError("the pipeline made fewer calls than before")


def begin_call(follower: Follower, name: str, remaining: Iterator[Visit]) -> Any:
    """The hook of a denoiser."""

    def begin(*_: Any) -> None:
        visit = next(remaining)
        if visit.denoiser != name:
            raise ValueError(f"expected a call of {visit.denoiser}, found one of {name}")
        follower.begin(visit)

    return begin


class CountAttention(TorchFunctionMode):
    """Counts fused attentions, whoever calls them."""

    def __init__(self, followers: Sequence[Follower]) -> None:
        super().__init__()
        self.followers = followers

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            for follower in self.followers:
                follower.num_attentions += 1
        return func(*args, **(kwargs or {}))


def hooks_of_site(follower: Follower, path: str) -> tuple[Any, Any]:
    """The hooks before and behind a site."""
    num_before = 0

    def begin(_module: nn.Module, _args: Any) -> None:
        nonlocal num_before
        num_before = follower.num_attentions

    def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
        if follower.leaves_out(path, num_before):
            return output
        leaves, spec = pytree.tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        given = follower.end_site(path, tuple(leaves[i] for i in places))
        for i, value in zip(places, given, strict=True):
            leaves[i] = value
        return pytree.tree_unflatten(leaves, spec)

    return begin, replace
