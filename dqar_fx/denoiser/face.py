"""A class for the denoisers of one class of models, whose instances are instances of both.

Libraries ask ``issubclass(type(model), ModelMixin)``, look names up in the class, and write
its name into files. The class made here is a subclass of the model's, has its name, and hands
each of its attributes on to the denoiser's fork, methods that nobody has heard of included: if
inherited, they would run on a denoiser, which lacks what ``__init__`` gave the model. What a
denoiser has by itself stays its own, and so does what the model's class has changed of
`torch.nn.Module`, such as ``to``: it ends in methods of a module, which a denoiser has.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any

from torch import nn

from dqar_fx.errors import DqarError

CLASSES_OF_MODULE = frozenset(nn.Module.__mro__)
CHANGING = frozenset(
    {"add_module", "register_module", "register_buffer", "register_parameter", "set_submodule"}
) | {name for name in vars(nn.Module) if "state_dict" in name and not name.startswith("__")}
"""Methods of any module that add something to it, or are about its state: the fork's, too."""


class FaceType(type):
    """The type of classes that equal the model's class, by which some look for a model.

    ``DiffusionPipeline.from_pipe`` keeps a model only if its class is among those that a
    signature names, and registries of hooks are dicts of classes.
    """

    classes: tuple[type, type]

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.classes[1]

    def __hash__(cls) -> int:
        return hash(cls.classes[1])

    def __setattr__(cls, name: str, value: object) -> None:
        if name == "forward":
            raise DqarError(
                f"the forward of all denoisers of {cls.__name__} cannot be replaced, as other "
                "caches do it: two caches do not go together. Give the pipeline its original "
                "model, by dqar_fx.disable(pipe), or use one cache alone"
            )
        super().__setattr__(name, value)


class OfModel:
    """An attribute of a model's class, which of a denoiser is its fork's.

    Args:
        kind: The model's class.
        name: The attribute's name.
    """

    def __init__(self, kind: type, name: str) -> None:
        self._kind, self._name = kind, name

    def __get__(self, denoiser: Any, owner: type | None = None) -> Any:
        return (
            getattr(self._kind, self._name)
            if denoiser is None
            else denoiser.look_up(self._name)
        )

    def __set__(self, denoiser: Any, value: object) -> None:
        denoiser.set_of_model(self._name, value)


@cache
def class_for(own: type, kind: type) -> type:
    """The class of denoisers of a class ``own`` that stand where a model of ``kind`` stood."""
    names = {name for each in set(kind.__mro__) - CLASSES_OF_MODULE for name in vars(each)}
    theirs = CHANGING | {name for name in names - set(dir(own)) if not is_magic(name)}
    made = {name: OfModel(kind, name) for name in theirs}
    told = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {**made, **told, "classes": (own, kind)}
    meta = FaceType if type(kind) is type else type("FaceType", (FaceType, type(kind)), {})
    return types.new_class(
        kind.__name__, (own, kind), {"metaclass": meta}, lambda names: names.update(body)
    )


def make_empty(own: type, kind: type) -> Any:
    """A denoiser without a state, which copies and pickles are made from."""
    return object.__new__(class_for(own, kind))


def is_magic(name: str) -> bool:
    """Whether Python looks a name up by itself."""
    return name.startswith("__") and name.endswith("__")
