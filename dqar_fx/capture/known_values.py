"""Values of tensors while a model is traced, where they follow from the conditioning.

What is traced has no values. Here everything that does not depend on the latent or the
timestep is computed beside the tracing, from the real inputs of the call, by the very
functions that the model calls: so a value is what the model itself would read.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from dqar_fx.passes.support.marks import AGAIN, MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Tensor = torch.Tensor
OF_LAYOUT = {
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty),
    Tensor.new_tensor,
}
"""Functions that read no value of their first argument."""
RANDOM = frozenset(
    {
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
        *("normal", "normal_", "uniform_", "bernoulli", "bernoulli_", "multinomial"),
    }
)
"""Names of functions that draw random numbers."""
RANDOM_NUMBERS = "random numbers"


@dataclass(frozen=True)
class Known:
    """What is known of a tensor that is traced.

    Attributes:
        value: The real tensor; None where it is another one at every step, or on the meta
            device.
        sources: Names of the inputs of the call that it depends on.
    """

    value: torch.Tensor | None
    sources: frozenset[str] = frozenset()


class KnownValues:
    """What is known of each tensor that is traced.

    Args:
        constant: Tensors that are not written to beside the tracing: those of the model.
    """

    def __init__(self, constant: Iterable[torch.Tensor] = ()) -> None:
        self._known = WeakTensorKeyDictionary()
        self._constant = set(map(storage_of, constant))
        self._overwritten: set[int] = set()

    def note(self, tensor: torch.Tensor, known: Known) -> None:
        """Say what is known of a tensor."""
        self._known[tensor] = known

    def find(self, tensor: torch.Tensor) -> Known:
        """What is known of a tensor; one that is not traced is a constant."""
        known: Known | None = self._known.get(tensor)  # type: ignore[no-untyped-call]
        if known is None:
            return Known(None if isinstance(tensor, FakeTensor) else tensor)
        if known.value is not None and storage_of(known.value) in self._overwritten:
            return Known(None, known.sources)
        return known

    def evaluate(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a function whose tensors are known."""

        def value_of(leaf: Any) -> Any:
            return self.find(leaf).value if isinstance(leaf, torch.Tensor) else leaf

        with untraced():
            return function(
                *pytree.tree_map(value_of, args), **pytree.tree_map(value_of, kwargs)
            )

    def follow(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Any, result: Any
    ) -> None:
        """Note what is known of what a function gave, or wrote to."""
        made = tensors_of(result)
        written = written_by(function, args, kwargs)
        if not made and written is None:
            return  # it asked for a shape, a dtype and the like
        if function in OF_LAYOUT and self.find(args[0]).value is None:
            like = args[0]
            with untraced():
                args = (
                    torch.empty(like.shape, dtype=like.dtype, device=like.device),
                    *args[1:],
                )
        given = [self.find(tensor) for tensor in tensors_of((args, kwargs))]
        sources = frozenset[str]().union(*(known.sources for known in given))
        if function is MARK:
            self._follow_mark(args, made, sources)
            return
        if getattr(function, "__name__", "") in RANDOM:
            given, sources = [Known(None)], sources | {RANDOM_NUMBERS}
        if all(known.value is not None for known in given) and not self._is_constant(written):
            values = tensors_of(self.evaluate(function, args, kwargs))
            for tensor, value in zip(made, values, strict=True):
                self.note(tensor, Known(value, sources))
            return
        for tensor in made:
            self.note(tensor, Known(None, sources))
        if written is not None:
            before = self.find(written).value
            if before is not None:  # all views of its memory are unknown from now on
                self._overwritten.add(storage_of(before))
            self.note(written, Known(None, sources))

    def _is_constant(self, tensor: torch.Tensor | None) -> bool:
        """Whether a tensor that is written to shows memory of the model."""
        value = None if tensor is None else self.find(tensor).value
        return value is not None and storage_of(value) in self._constant

    def _follow_mark(
        self, args: Any, made: Sequence[torch.Tensor], sources: frozenset[str]
    ) -> None:
        """Follow values into a block and out of it; what does not run is not known."""
        given, _, role, *_ = args
        for tensor, inside in zip(made, made if role == AGAIN else given, strict=True):
            value = None if role == AGAIN else self.find(inside).value
            self.note(tensor, Known(value, sources))


@contextmanager
def untraced() -> Iterator[None]:
    """Let functions compute, although a model is being traced."""
    with torch._C.DisableTorchFunction(), _disable_current_modes(), no_python_dispatcher():
        yield


def tensors_of(values: Any) -> list[torch.Tensor]:
    """The tensors among the leaves of something."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def written_by(function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
    """The tensor that a function writes to; None if there is none."""
    name = getattr(function, "__name__", "")
    if "out" in kwargs:
        return kwargs["out"]
    is_method = name.endswith("_") and not name.startswith("_")
    if is_method or name in ("__setitem__", "__set__") or is_augmented(name):
        return args[0]
    return None


def is_augmented(name: str) -> bool:
    """Whether a method is an assignment such as ``+=``."""
    return name.startswith("__i") and name[3:] in {
        *("add__", "sub__", "mul__", "truediv__", "floordiv__", "mod__", "pow__"),
        *("and__", "or__", "xor__", "lshift__", "rshift__", "div__"),
    }


def storage_of(tensor: torch.Tensor) -> int:
    """What tells the memory of a tensor from others."""
    return int(tensor.untyped_storage()._cdata)
