"""Values that a forward reads on the host become constants of the graph.

A forward that branches on a mask, takes lengths from it or selects by it cannot be traced:
what is traced has no values. But masks are the same at every step of a run. So while
`HostReads` watches a model, each such read of the conditioning is answered with the value that
it has for the inputs of this call (`KnownValues`), and what was read is noted, for the graph
is right for these values alone (`Reads`):

    lengths = mask.sum(1).tolist()     ->  the numbers
    if torch.all(image == 0):          ->  the branch that is taken
    x = tokens[mask]                   ->  index(tokens, constant places)

What reads the latent or the timestep is refused: it may be another value at every step.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from traceback import walk_stack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from dqar_fx.passes.support.conditioning_nodes import TIMESTEP_NAMES, choose_latents

from .failures import place_of
from .known_values import Known, KnownValues, tensors_of, untraced
from .read_rules import RULES, Answer
from .reads import Read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

Tensor = torch.Tensor


class ReadsStep(ValueError):
    """A forward reads on the host what may be another value at every step."""


class HostReads(TorchFunctionMode):
    """Answers what a forward reads on the host while it is traced.

    Args:
        model: The model that will be watched.
        args: Positional arguments of the call that is traced.
        kwargs: Keyword arguments of the call.

    Attributes:
        reads: What was read.
        has_met: Whether anything was to be read at all.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self.reads: list[Read] = []
        self.has_met = False
        self._model = model
        self._given = list(name_tensors(model, args, kwargs))
        names = [name for name, _ in self._given]
        latents = choose_latents(names, [t.is_floating_point() for _, t in self._given])
        timestep = next((names.index(name) for name in TIMESTEP_NAMES if name in names), None)
        self._changing = {*latents, timestep}

    def watch(self, model: nn.Module) -> None:
        """Let a fork of the model, which is changed, return what it reads as well."""
        real: list[tuple[str, torch.Tensor]] = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        run = model.forward

        @functools.wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._begin(model, dict(real), args, kwargs)
            with lists_as_tensors_do(), self:
                result = run(*args, **kwargs)
            return result, tuple(self._outputs)

        model.forward = forward

    def _begin(
        self, model: nn.Module, real: dict[str, Tensor], args: Any, kwargs: Any
    ) -> None:
        """Tell what is known before the forward runs."""
        self.reads, self._outputs = [], list[Tensor]()
        self._noted: dict[tuple[int, int], Tensor] = {}
        self._values = KnownValues(real.values())
        for named in (model.named_parameters, model.named_buffers):
            for name, traced in named(remove_duplicate=False):
                self._values.note(traced, Known(real[name], frozenset({name})))
        pairs = zip(self._given, name_tensors(model, args, kwargs), strict=True)
        for place, ((name, value), (_, traced)) in enumerate(pairs):
            # a copy: the forward may write to what it is given
            with untraced():
                known = None if place in self._changing else value.detach().clone()
            self._values.note(traced, Known(known, frozenset({name})))

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run what the forward calls, or answer it."""
        del types
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is not None and tensors_of((args, kwargs)):
            instead = rule(self, func, args, kwargs)
            if isinstance(instead, Answer):
                return instead.result
            func, args, kwargs = instead
        result = func(*args, **kwargs)
        self._values.follow(func, args, kwargs, result)
        return result

    # ---- reading -------------------------------------------------------------------------

    def value_of(self, tensor: Tensor) -> Tensor:
        """The value of a tensor that is read, which is noted.

        Raises:
            ReadsStep: It may be another one at every step, or is on the meta device.
        """
        known = self._values.find(tensor)
        self.has_met = True
        sources = tuple(sorted(known.sources))
        if known.value is None:
            changing = {self._given[i][0] for i in self._changing if i is not None}
            of_step = [name for name in sources if name in changing] or sources
            raise ReadsStep(
                f"it reads on the host what depends on {', '.join(of_step)}, which may be "
                "another value at every step"
            )
        if known.value.is_meta:
            raise ReadsStep(
                f"it reads on the host what depends on {', '.join(sources)}, of which there "
                "are no values on the meta device: give real tensors for the inputs, and a "
                "model with parameters"
            )
        key = id(tensor), known.value._version
        if sources and key not in self._noted:
            self._noted[key] = tensor  # kept, so that its number is not given to another one
            self._outputs.append(tensor.clone())
            place = place_of(((f, n) for f, n in walk_stack(None)), type(self._model))
            with untraced():
                self.reads.append(Read(known.value.clone(), sources, place))
        return known.value

    def constant(self, value: Tensor) -> Tensor:
        """A tensor of the graph that always has a value."""
        traced: Tensor = torch.ops.aten.lift_fresh_copy.default(value)
        self._values.note(traced, Known(value))
        return traced

    def number(self, tensor: Tensor) -> Any:
        """The number that a tensor without dimensions is."""
        value = self.value_of(tensor)
        with untraced():
            return value.item()

    def answer(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a function of values alone; tensors of it are constants.

        An array is a copy: what the forward writes to later is not in the graph's constants.
        """
        for tensor in tensors_of((args, kwargs)):
            self.value_of(tensor)
        result = self._values.evaluate(func, args, kwargs)
        if isinstance(result, np.ndarray):
            return result.copy()
        return pytree.tree_map_only(Tensor, self.constant, result)

    def places(self, mask: Tensor, shape: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Where a mask, of a shape, is true: a constant for each of its dimensions."""
        value = self.value_of(mask)
        with untraced():
            found = value.expand(shape or value.shape).nonzero(as_tuple=True)
        return tuple(map(self.constant, found))

    def index(self, index: Any) -> Any:
        """An index with constants where it has masks and numbers that are tensors."""
        if not isinstance(index, tuple):
            found = tuple(self.parts(index))
            return found[0] if len(found) == 1 else found
        return tuple(part for each in index for part in self.parts(each))

    def parts(self, index: Any) -> Iterator[Any]:
        """What stands for one part of an index."""
        if isinstance(index, slice):
            ends = (index.start, index.stop, index.step)
            yield slice(*(self.number(e) if isinstance(e, Tensor) else e for e in ends))
        elif not isinstance(index, Tensor):
            yield index
        elif index.dtype in (torch.bool, torch.uint8) and index.dim():
            yield from self.places(index)
        elif index.dim() == 0 and not index.is_floating_point():
            yield self.number(index)
        else:
            yield index


class MeetsReads(HostReads):
    """Ends a tracing at the first read, before torch makes up a symbol for its value.

    With symbols for values, tracing goes on for long, and fails at last.
    """

    def value_of(self, tensor: Tensor) -> Tensor:
        """There are no values."""
        self.has_met = True
        raise ReadsStep(f"it reads a tensor of shape {list(tensor.shape)} on the host")

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run what the forward calls, unless it reads."""
        del types
        kwargs = kwargs or {}
        if func in RULES and tensors_of((args, kwargs)):
            RULES[func](self, func, args, kwargs)
        return func(*args, **kwargs)

    def _begin(
        self, model: nn.Module, real: dict[str, Tensor], args: Any, kwargs: Any
    ) -> None:
        """Nothing is known."""
        self._outputs = []


@contextmanager
def lists_as_tensors_do() -> Iterator[None]:
    """Let ``tolist`` of what is traced be read at once: it has one that reads each element."""
    own = FakeTensor.tolist
    try:
        FakeTensor.tolist = Tensor.tolist  # type: ignore[method-assign]
        yield
    finally:
        FakeTensor.tolist = own  # type: ignore[method-assign]


def name_tensors(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a call by the names that a graph's inputs have, nearly."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    for name, value in bound.items():
        tensors = tensors_of(value)
        for i, tensor in enumerate(tensors):
            yield (name if tensor is value else f"{name}_{i}"), tensor
