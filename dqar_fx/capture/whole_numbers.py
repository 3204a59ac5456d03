"""Let ``int(...)`` in a model's code keep a size that is a symbol.

To `torch.export`, ``int`` of a size is the number that it is in this call: the capture would be
good for that size alone. While a model is traced, the modules of its code have an ``int`` of
their own, which gives symbols back as they are.

Left alone are modules that compare a type with ``int``, and those of torch.
"""

from __future__ import annotations

import inspect
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextmanager
def keep_symbols(model: nn.Module) -> Iterator[None]:
    """Let ``int(...)`` in the code of a model's modules keep symbols."""
    names = {type(module).__module__ for module in model.modules()}
    found = [sys.modules[name] for name in sorted(names) if is_of_model(name)]
    changed = [vars(module) for module in found if "int" not in vars(module)]
    for names_of in changed:
        names_of["int"] = Integer
    try:
        yield
    finally:
        for names_of in changed:
            del names_of["int"]


def is_of_model(name: str) -> bool:
    """Whether a module of code is a model's, in which ``int`` may be another."""
    if name.split(".")[0] == "torch" or name not in sys.modules:
        return False
    try:
        return not COMPARES.search(inspect.getsource(sys.modules[name]))
    except (OSError, TypeError):
        return False
