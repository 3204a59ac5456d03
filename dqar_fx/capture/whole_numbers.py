"""Let sizes stay symbols where a model's code makes plain numbers or tensors of them.

To `torch.export`, ``int`` of a size, and a tensor that is made of one, are the number that it
is in this call: the capture would be good for that size alone. While a model is traced, the
modules of its code have an ``int`` of their own, which gives symbols back as they are, a
``len`` that gives one for a tensor, and ``max`` and ``min`` that do not ask which symbol is
larger; ``torch.tensor`` of a symbol is an operator, and a reshape that puts sizes into another
order does not ask which of them are equal.

Left alone are modules that compare a type with ``int``, and those of torch.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

COMPARES = re.compile(r"\bis (not )?int\b|[!=]= ?int\b|\bint ==|\bin [\[({]int\b")
"""Code in which ``int`` has to be the type itself."""


class IntegerType(type):
    """The type of what is taken for ``int``."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)

    def __call__(cls, value: Any = 0, *base: Any) -> Any:
        """A whole number; of a symbol, the symbol."""
        return value if isinstance(value, torch.SymInt) else int(value, *base)


class Integer(metaclass=IntegerType):
    """Stands for ``int``."""


def choose(of: Callable[..., Any], of_two: Callable[..., Any]) -> Callable[..., Any]:
    """``max`` or ``min``, which of symbols is another symbol."""

    def chosen(*values: Any, **options: Any) -> Any:
        items = tuple(values[0]) if len(values) == 1 else values
        if options or not any(isinstance(each, torch.SymInt) for each in items):
            return of(items, **options)
        return functools.reduce(of_two, items)

    return chosen


def count(value: Any) -> Any:
    """``len``, which of a tensor is its size."""
    return value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else len(value)


OWN_NAMES = {
    "int": Integer,
    "len": count,
    "max": choose(max, torch.sym_max),
    "min": choose(min, torch.sym_min),
}
"""What stands for names of Python in a model's code while it is traced."""


RESHAPES = (torch.reshape, torch.Tensor.reshape)


def shape_asked(args: tuple[Any, ...], kwargs: Any) -> tuple[Any, ...]:
    """The shape that a reshape is given: numbers, or a sequence of them."""
    (asked,) = args if len(args) == 1 else (args or kwargs["shape"],)
    return tuple(asked) if isinstance(asked, (tuple, list)) else (asked,)


def has_other_order(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether a shape has the sizes of another, ones aside, in another order.

    Whether a view is possible depends then on which of them are equal, or multiples.
    """
    own, other = (
        [size.node.expr if isinstance(size, torch.SymInt) else size for size in sizes]
        for sizes in (before, after)
    )
    own, other = ([size for size in sizes if size != 1] for sizes in (own, other))
    return own != other and Counter(own) == Counter(other)


class SymbolsAsTensors(TorchFunctionMode):
    """While it is on, a tensor that is made of a symbol depends on it.

    What is reshaped to sizes in another order is flattened before, since torch would ask
    which of these are equal.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch."""
        if func in RESHAPES and has_other_order(args[0].shape, shape_asked(args[1:], kwargs)):
            return torch.reshape(args[0].flatten(), shape_asked(args[1:], kwargs))
        if func in (torch.tensor, torch.as_tensor) and isinstance(args[0], torch.SymInt):
            options = {"dtype": torch.int64, **(kwargs or {})}
            return torch.scalar_tensor(args[0], **options)  # type: ignore[arg-type]
        return func(*args, **(kwargs or {}))


@contextmanager
def keep_symbols(model: nn.Module) -> Iterator[None]:
    """Let symbols stay what they are in the code of a model's modules."""
    names = {type(module).__module__ for module in model.modules()}
    found = [sys.modules[name] for name in sorted(names) if is_of_model(name)]
    changed = [
        (vars(module), name)
        for module in found
        for name in OWN_NAMES
        if name not in vars(module)
    ]
    for names_of, name in changed:
        names_of[name] = OWN_NAMES[name]
    try:
        with SymbolsAsTensors():
            yield
    finally:
        for names_of, name in changed:
            del names_of[name]


def is_of_model(name: str) -> bool:
    """Whether a module of code is a model's, in which ``int`` may be another."""
    if name.split(".")[0] == "torch" or name not in sys.modules:
        return False
    try:
        return not COMPARES.search(inspect.getsource(sys.modules[name]))
    except (OSError, TypeError):
        return False
