"""Repeated blocks, while a model is traced: the first of a kind runs, equal ones do not.

Most of the time of a capture goes to blocks that differ in their parameters alone. A
block that is equal to another (`equal_modules`), and is called as that one was, leaves a mark
in the graph; the pass `dqar_fx.passes.expand_repeats` puts the first one's nodes there.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from dqar_fx.passes import CannotExpand
from dqar_fx.passes.support.marks import AGAIN, BEGIN, END, mark
from dqar_fx.passes.support.module_paths import find_enclosing, is_inside, rename_path

from . import put_away
from .equal_modules import (
    STANDS_IN,
    ValueDescriber,
    describe_module,
    find_equal_modules,
    tensor_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from torch import fx

CONSTANT = (type(None), bool, int, float, str)
"""What a block may return beside tensors."""
NUM_RUNNING = 2
"""How many of a group of equal blocks are expected to run, at most."""
OWN_FILES = "|".join(map(re.escape, (__file__, put_away.__file__)))
OWN_FRAMES = re.compile(rf' *File "(?:{OWN_FILES})", line .*\n(?:    .*\n)?')


@dataclass(frozen=True)
class BlockCall:
    """What a block is called with.

    Attributes:
        leaves: The leaves of its arguments.
        spec: How the leaves become ``(args, kwargs)``.
        given: The tensors among them, each once.
        key: What is equal for two calls that compute the same.
    """

    leaves: Sequence[Any]
    spec: pytree.TreeSpec
    given: list[torch.Tensor]
    key: Hashable

    @classmethod
    def of(cls, path: str, block: nn.Module, arguments: Any) -> BlockCall:
        """Describe a call; the block as it is now, which its caller may have changed."""
        leaves, spec = pytree.tree_flatten(arguments)
        given = distinct_tensors(leaves)
        owner = path.rpartition(".")[0]
        with torch._C.DisableTorchFunction():  # each look at a tensor would ask what traces it
            described = describe_module(block), describe_call(leaves, given)
        # to a spec, keys 1 and True are equal
        return cls(leaves, spec, given, (owner, spec, str(spec), *described))


@dataclass(frozen=True)
class FirstCall:
    """The first call of its kind.

    Attributes:
        number: The number of the call.
        path: The path of the block.
        given: The tensors that it was given.
        outputs: The leaves of what it returned.
        spec: How the outputs become what it returned.
    """

    number: int
    path: str
    given: Sequence[torch.Tensor]
    outputs: Sequence[Any]
    spec: pytree.TreeSpec

    def stand_in(self, given: list[torch.Tensor], path: str) -> Any:
        """What an equal block returns, which does not run."""
        made = others(self.outputs, self.given)
        results = mark(given, made, AGAIN, self.number, path)
        outputs = exchange(self.outputs, [*made, *self.given], [*results, *given])
        return pytree.tree_unflatten(outputs, self.spec)


@dataclass(frozen=True)
class RepeatedBlocks:
    """The repeated blocks of one model while it is traced.

    Attributes:
        groups: Paths of the blocks, equal ones together.
        tensors: Which tensor each path of the model's parameters and buffers names.
        firsts: First calls, by what was called and with what.
        called: Paths of blocks that were called.
    """

    groups: Sequence[Sequence[str]]
    tensors: Mapping[str, int]
    firsts: dict[Hashable, FirstCall] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)

    @classmethod
    def watch(cls, model: nn.Module) -> RepeatedBlocks | None:
        """Let equal blocks of a model, which is changed, stand in for each other, if any."""
        paths = Counter(id(each) for _, each in model.named_modules(remove_duplicate=False))

        def is_watched(path: str) -> bool:
            block = model.get_submodule(path)
            # of a module that has several paths, export finds the one by who calls it
            is_one = all(paths[id(each)] == 1 for each in block.modules())
            return is_one and type(block).forward is not nn.Module.forward

        groups = [[*filter(is_watched, group)] for group in find_equal_modules(model)]
        named = (model.named_parameters, model.named_buffers)
        repeats = cls(
            groups,
            {name: id(each) for of in named for name, each in of(remove_duplicate=False)},
        )
        for path in chain.from_iterable(groups):
            block = model.get_submodule(path)
            block.forward = repeats.mediate(block, path)
        return repeats if any(groups) else None

    def find_spare(self) -> list[str]:
        """Paths of blocks that are likely not to run, and have no tensor of others.

        Of equal blocks the first two are likely to run: often the first one's input has
        another layout than that of those behind it.
        """
        shared = list(chain.from_iterable(self.shared_tensors))
        spare = {
            path
            for group in self.groups
            for path in group[NUM_RUNNING:]
            if not any(is_inside(name, path) for name in shared)
        }
        return [path for path in spare if not find_enclosing(path.rpartition(".")[0], spare)]

    def mediate(self, block: nn.Module, path: str) -> Callable[..., Any]:
        """A forward that asks here before it runs the block's own."""
        run = block.forward

        @functools.wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if path in self.called:
                raise CannotExpand(f"{path} is called twice")
            self.called.add(path)
            call = BlockCall.of(path, block, (args, kwargs))
            if not call.given or not all(map(is_ordinary, call.given)):
                return run(*args, **kwargs)
            first = self.firsts.get(call.key)
            if first is not None:
                self.refuse_other_names(first.path, path)
                return first.stand_in(call.given, path)
            first = self.firsts[call.key] = self.run_first(run, call, block, path)
            return pytree.tree_unflatten(first.outputs, first.spec)

        setattr(forward, STANDS_IN, True)
        return forward

    def run_first(
        self, run: Callable[..., Any], call: BlockCall, block: nn.Module, path: str
    ) -> FirstCall:
        """Run a block between marks.

        Raises:
            CannotExpand: It changes something or returns something that has to be its own.
        """
        number = len(self.called)
        inside = mark(call.given, call.given, BEGIN, number, path)
        args, kwargs = pytree.tree_unflatten(
            exchange(call.leaves, call.given, inside), call.spec
        )
        outputs, spec = pytree.tree_flatten(run(*args, **kwargs))
        after = BlockCall.of(path, block, (args, kwargs))
        if after.key != call.key or [*map(id, after.given)] != [*map(id, inside)]:
            raise CannotExpand(f"{path} changes what it holds or is given")
        outputs = exchange(outputs, inside, call.given)  # what it hands through is the same
        made = others(outputs, call.given)
        plain = all(isinstance(each, (torch.Tensor, *CONSTANT)) for each in outputs)
        if not made or not plain or not all(map(is_ordinary, made)):
            raise CannotExpand(f"{path} returns more than tensors that it computes")
        outputs = exchange(outputs, made, mark(made, made, END, number, path))
        return FirstCall(number, path, call.given, outputs, spec)

    def refuse_other_names(self, first: str, path: str) -> None:
        """Raise if a tensor has names of which an equal block's do not all name one tensor.

        A graph has one of the names of each, whichever came first.
        """
        for names in self.shared_tensors:
            if any(is_inside(name, first) for name in names):
                theirs = {self.tensors.get(rename_path(name, first, path)) for name in names}
                if len(theirs) > 1:
                    raise CannotExpand(f"{', '.join(names)} are one tensor")

    @cached_property
    def shared_tensors(self) -> list[list[str]]:
        """Names of each tensor that has several."""
        names: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            names.setdefault(tensor, []).append(name)
        return [each for each in names.values() if len(each) > 1]


def is_ordinary(tensor: torch.Tensor) -> bool:
    """Whether a mark's result is like it: no parameter, nothing put off."""
    with torch._C.DisableTorchFunction():
        return not (isinstance(tensor, nn.Parameter) or tensor.is_conj() or tensor.is_neg())


def others(leaves: Iterable[Any], known: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors among some leaves that are none of some known ones, each once."""
    numbers = {id(each) for each in known}
    return [each for each in distinct_tensors(leaves) if id(each) not in numbers]


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
    likeness = ValueDescriber()
    return tuple(map(tensor_metadata, tensors)), tuple(
        position[id(leaf)] if id(leaf) in position else ("value", likeness.of_value(leaf))
        for leaf in leaves
    )


def hide_frames(gm: fx.GraphModule) -> None:
    """Take the frames that keep blocks from running out of what says where nodes come from."""
    for node in gm.graph.nodes:
        if "stack_trace" in node.meta:
            node.meta["stack_trace"] = OWN_FRAMES.sub("", node.meta["stack_trace"]).lstrip()
