"""Repeated blocks, while a model is traced: the first of a kind runs, its twins do not.

Most of the time of a capture goes to blocks that differ in their parameters alone. A twin
(`dqar_fx.twins`) that is called as the first one was leaves a mark in the graph; the pass
`dqar_fx.passes.expand_repeats` puts the first one's nodes there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from dqar_fx.passes.expand_repeats import AGAIN, BEGIN, END, CannotExpand, mark

from .twins import SAME_AS, Likeness, describe, find_twins, layout_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from torch import fx, nn

PLAIN = (type(None), bool, int, float, str)
"""What a block may return beside tensors."""
OWN_FRAMES = re.compile(rf'  File "{re.escape(__file__)}", line .*\n(?:    .*\n)?')


@dataclass(frozen=True)
class First:
    """What the first call of its kind returned.

    Attributes:
        number: Of the call.
        outputs: Its leaves.
        spec: How they become what it returned.
    """

    number: int
    outputs: Sequence[Any]
    spec: pytree.TreeSpec


@dataclass
class Repeats:
    """The repeated blocks of one model while it is traced.

    Attributes:
        firsts: First calls, by what was called and with what; None while one is running.
        called: Paths of blocks that were called.
    """

    firsts: dict[Hashable, First | None] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)

    @classmethod
    def watch(cls, model: nn.Module) -> int:
        """Let twins of a model stand in for each other from now on; how many there are.

        The model is changed.
        """
        repeats = cls()
        blocks = {path: model.get_submodule(path) for path in find_twins(model)}
        # a forward of its own would come before the class's
        watched = {
            path: block for path, block in blocks.items() if "forward" not in vars(block)
        }
        for path, block in watched.items():
            block.__class__ = repeats.mediate(block, path)
        return len(watched)

    def mediate(self, block: nn.Module, path: str) -> type[nn.Module]:
        """A subclass, under the same name, whose forward asks here first."""
        kind = type(block)

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if path in self.called:
                raise CannotExpand(f"{path} is called twice")
            self.called.add(path)
            leaves, spec = pytree.tree_flatten((args, kwargs))
            given = distinct_tensors(leaves)
            # as it is now: what calls it may have set something
            key = path.rpartition(".")[0], describe(block), spec, describe_call(leaves, given)
            first = self.firsts.get(key)
            if first is not None:
                return stand_in(first, given, path)
            if key in self.firsts or not given:  # inside of the first, or on its own
                return kind.forward(module, *args, **kwargs)
            number, self.firsts[key] = len(self.firsts), None
            inner = exchange(leaves, given, mark(given, given, BEGIN, number, path))
            args, kwargs = pytree.tree_unflatten(inner, spec)
            first = close(kind.forward(module, *args, **kwargs), number, path)
            self.firsts[key] = first
            return pytree.tree_unflatten(first.outputs, first.spec)

        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        return type(kind.__name__, (kind,), {"forward": forward, SAME_AS: kind, **names})


def stand_in(first: First, given: list[torch.Tensor], path: str) -> Any:
    """What a twin returns that does not run."""
    like = distinct_tensors(first.outputs)
    results = mark(given, like, AGAIN, first.number, path)
    return pytree.tree_unflatten(exchange(first.outputs, like, results), first.spec)


def close(returned: object, number: int, path: str) -> First:
    """Put the mark behind the first call of its kind.

    Raises:
        CannotExpand: It returned something that another call may return otherwise.
    """
    outputs, spec = pytree.tree_flatten(returned)
    made = distinct_tensors(outputs)
    if not made or not all(isinstance(each, (torch.Tensor, *PLAIN)) for each in outputs):
        raise CannotExpand(f"{path} returns more than tensors")
    return First(number, exchange(outputs, made, mark(made, made, END, number, path)), spec)


def distinct_tensors(leaves: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among some leaves, each once."""
    found = {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return list(found.values())


def exchange(
    leaves: Iterable[Any], known: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> list[Any]:
    """Leaves with others in the place of known tensors."""
    pairs = {id(tensor): other for tensor, other in zip(known, others, strict=True)}
    return [pairs.get(id(leaf), leaf) for leaf in leaves]


def describe_call(leaves: Sequence[Any], tensors: Sequence[torch.Tensor]) -> Hashable:
    """What two calls must have in common: layouts, which tensors are one, and other values."""
    position = {id(tensor): i for i, tensor in enumerate(tensors)}
    likeness = Likeness()
    return tuple(map(layout_of, tensors)), tuple(
        position[id(leaf)] if id(leaf) in position else ("value", likeness.of_value(leaf))
        for leaf in leaves
    )


def hide_frames(gm: fx.GraphModule) -> None:
    """Take the frames of this file out of what says where nodes come from."""
    for node in gm.graph.nodes:
        if "stack_trace" in node.meta:
            node.meta["stack_trace"] = OWN_FRAMES.sub("", node.meta["stack_trace"])
