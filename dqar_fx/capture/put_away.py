"""What repeated blocks hold, put away while a model is traced.

Tracing handles every parameter and every module of a model, which takes long. A block that
another one stands in for (`dqar_fx.capture.repeats`) needs none of its own: they are taken out
of the copy of the model that is traced, and its parameters and buffers are given to the graph
that is made of it. In between they are refused to whatever looks at them, so that no graph is
of a model with parts missing.
"""

from __future__ import annotations

import functools
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.fx.graph_module import _assign_attr

from dqar_fx.passes import CannotExpand
from dqar_fx.passes.support.graphs import fake_mode_of
from dqar_fx.passes.support.marks import AGAIN, BEGIN, Mark, find_marks
from dqar_fx.passes.support.module_paths import find_enclosing, rename_path

from .equal_modules import REGISTERED, STANDS_IN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import fx
    from torch._subclasses import FakeTensorMode

NOTHING = ("_modules", *REGISTERED)
"""Attributes of a module that are empty dictionaries if it holds nothing."""


class OutOfReach(dict[str, Any]):
    """Tensors of a module, which are only to be looked at by `dict`'s own methods.

    Attributes:
        is_met: Whether anything else looked, which may have gone on.
    """

    is_met = False

    def refuse(self, *_: Any, **__: Any) -> Any:
        """Raise, whatever is asked."""
        self.is_met = True
        raise CannotExpand("a part of a block is looked at or called, but not the block")

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor, as any attribute that is missing asks."""
        return super().__contains__(name) and self.refuse()

    __getitem__ = __iter__ = __len__ = __setitem__ = __delitem__ = refuse
    get = items = keys = pop = setdefault = update = values = refuse
    setattr(refuse, STANDS_IN, True)


class PutAway:
    """Blocks of a model, which is changed, that are traced without what they hold.

    Args:
        model: The model.
        paths: The blocks, none inside of another.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self._named = dict(chain(model.named_parameters(), model.named_buffers()))
        self._blocks = {path: model.get_submodule(path) for path in paths}
        self._tensors: list[OutOfReach] = []
        hidden = {path: self._hide(block) for path, block in self._blocks.items()}
        run = model.forward

        @functools.wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            for path, block in self._blocks.items():
                vars(block).update(hidden[path])
            try:
                return run(*args, **kwargs)
            finally:
                self._empty()

        model.forward = forward
        self._empty()

    @property
    def is_met(self) -> bool:
        """Whether anything looked at what is put away."""
        return any(each.is_met for each in self._tensors)

    def _hide(self, block: nn.Module) -> dict[str, Any]:
        """Put the tensors of a block out of reach; what it holds while the model runs."""
        for module in block.modules():
            tensors = {name: OutOfReach(vars(module)[name]) for name in REGISTERED}
            self._tensors += tensors.values()
            vars(module).update(tensors)
            if module is not block:
                module.forward = tensors[REGISTERED[0]].refuse
        return {name: vars(block)[name] for name in NOTHING}

    def _empty(self) -> None:
        """Let the blocks hold nothing."""
        for block in self._blocks.values():
            vars(block).update({name: {} for name in NOTHING})

    def give_back(self, gm: fx.GraphModule) -> None:
        """Give a graph with marks the parameters and buffers of the blocks, as if traced.

        Raises:
            CannotExpand: Anything looked at them.
        """
        if self.is_met:
            raise CannotExpand("a part of a block was looked at or called, but not the block")
        marks = [Mark.of(node) for node in find_marks(gm.graph)]
        begun = {mark.number: mark.path for mark in marks if mark.role == BEGIN}
        firsts = {mark.path: begun[mark.number] for mark in marks if mark.role == AGAIN}
        nodes = {str(node.target): node for node in gm.graph.find_nodes(op="get_attr")}
        mode, last = fake_mode_of(gm.graph), gm.graph.output_node()
        for name, tensor in self._named.items():
            is_away = name not in nodes and find_enclosing(name, self._blocks)
            if is_away and find_enclosing(name, firsts):
                _assign_attr(tensor, gm, name)
                with gm.graph.inserting_after(last):  # in the order of the model
                    nodes[name] = gm.graph.create_node("get_attr", name)
                nodes[name].meta.update(find_like(name, nodes, firsts).meta)
                nodes[name].meta["val"] = fake_parameter(tensor, mode)
            last = nodes.get(name, last)


def fake_parameter(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """What stands for a parameter or buffer in a graph.

    A mode makes it of any tensor, and takes ten times as long as one of a plain layout needs.
    """
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not is_plain or tensor.storage_offset():
        return mode.from_tensor(tensor, static_shapes=True)
    empty = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
    )
    return FakeTensor(mode, empty, tensor.device)


def find_like(name: str, nodes: Mapping[str, fx.Node], firsts: Mapping[str, str]) -> fx.Node:
    """The node of the parameter that the first of some blocks has in the place of another."""
    like = name
    while like == name or like not in nodes:
        block = find_enclosing(like, firsts)
        like = rename_path(like, block, firsts[block])
    return nodes[like]
