"""`Tensor.data` in a forward that is traced, and tensors that functions keep past it.

`torch.export` does not see what ``x.data`` makes: a new tensor over the memory of ``x``, to
read or to write through. In inference ``x.detach()`` is the same, and is an operator. It does
not see ``x.data = y`` either, and would leave it out in silence.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import _lru_cache_wrapper
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType

    from torch import nn

GET_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]  # a slot of the C type
SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]  # a slot of the C type


class DataAsOperators(TorchFunctionMode):
    """Lets ``x.data`` of a tensor that is traced be an operator."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, or what stands for it.

        Raises:
            NotImplementedError: It gives a tensor other data, which no operator does.
        """
        if func in (GET_DATA, SET_DATA) and isinstance(args[0], FakeTensor):
            if func == SET_DATA:
                raise NotImplementedError(
                    "its forward gives a tensor other data, `x.data = y`. Use `x = y`"
                )
            return args[0].detach()
        return func(*args, **(kwargs or {}))


@contextmanager
def without_kept_results(model: nn.Module) -> Iterator[None]:
    """Let functions of a model keep nothing of a forward that is traced.

    What ``functools.lru_cache`` or a dictionary beside a class keeps would be found by the
    next forward, and by the model itself, though it has no values.
    """
    held = [value for owner in find_owners(model) for value in vars(owner).values()]
    caches = [each for each in held if isinstance(each, _lru_cache_wrapper)]
    dictionaries = [each for each in held if type(each) is dict]
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.cache_clear()
        for each in dictionaries:
            for key in [key for key, value in list(each.items()) if is_traced(value)]:
                del each[key]


def find_owners(model: nn.Module) -> set[type | ModuleType]:
    """Classes of a model's modules, and the files that they are in."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    own = {each for each in classes if not each.__module__.startswith(("torch.", "builtins"))}
    files = {sys.modules[each.__module__] for each in own if each.__module__ in sys.modules}
    return own | files


def is_traced(value: object) -> bool:
    """Whether a value has a tensor without values, which tracing makes."""
    return any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(value))
