"""The wrapper of a transformed model: whatever the original shows, and its own methods."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import nn

from dqar_fx.capture.capture import fork_model

from .binding import Binder

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = (
    "diffusers.configuration_utils",
    "diffusers.loaders",
    "diffusers.models.cache_utils",
    "diffusers.models.modeling_utils",
    "diffusers.utils",
    "torch",
    "transformers.modeling_utils",
)
"""Where methods are from that load, save, adapt, wrap or cache any model, not its graph."""
OF_LIBRARY = frozenset(
    {
        "get_memory_footprint",
        "num_parameters",
        "register_to_config",
        "reset_attention_backend",
        "set_attention_backend",
    }
)
"""Methods from there that do for a denoiser what they do for a model."""
PRIVATE = frozenset({"_set_ar_attention"})
"""Methods by name that pipelines call although they are no public ones."""


class Wrapper(nn.Module):
    """Has the original's forward signature, ``config``, ``dtype``, ``device``, attributes.

    It has the methods of the original's own class, too. They are applied to the fork, never to
    the original; what they change, the next call follows.

    Args:
        model: The original; it is not modified.

    Attributes:
        model: A fork of it, whose parameters share their storage with the original's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        original = getattr(model, "_orig_mod", model)  # of a module that torch.compile wraps
        self.model = fork_model(original)
        self._signature = inspect.signature(original.forward)
        asks = self._signature.parameters.get("return_dict")
        is_diffusers = isinstance(original, ModelMixin)
        gives_objects = is_diffusers and asks is not None and asks.default is True
        self._binder = Binder(self._signature, takes_return_dict=gives_objects)

    @property
    def forward(self) -> Callable[..., Any]:
        """One step of one stream; signature and result are the original's."""
        replaced: Callable[..., Any] | None = self.__dict__.get("_replaced_forward")
        if replaced is not None:
            return replaced
        call = partial(self._forward)
        call.__signature__ = self._signature  # type: ignore[attr-defined]
        return call

    @forward.setter
    def forward(self, replacement: Callable[..., Any]) -> None:
        """Offloading hooks put a forward of their own around this one."""
        self.__dict__["_replaced_forward"] = replacement

    if TYPE_CHECKING:

        def _forward(self, *args: Any, **kwargs: Any) -> Any:
            """One step of one stream, which a subclass runs."""

    def _bind_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        """Arguments in the signature's order, and whether a tuple is asked for.

        The graph always gives the model's output object: ``return_dict=False`` is answered
        from it, not by a second graph.
        """
        return self._binder.bind(args, kwargs)

    @property
    def config(self) -> Any:
        """The original's configuration."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters, as the original tells it."""
        own = getattr(self.model, "dtype", None)
        if isinstance(own, torch.dtype):
            return own
        return next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def __getattr__(self, name: str) -> Any:
        """Attributes, submodules and methods of the original; not what knows no graph."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            is_private = name.startswith("_") and name not in PRIVATE
            if model is None or is_private or not hasattr(model, name):
                raise
            value = getattr(model, name)
            if isinstance(value, nn.Module) or not callable(value):
                return value
            if not inspect.ismethod(value) or is_of_library(type(model), name):
                raise AttributeError(
                    f"{type(self).__name__} has no method {name!r}, which would not change "
                    "what was captured; to change the model, call its methods before "
                    "dqar_fx.transform"
                ) from None
            return partial(self._call_method, value)

    def _call_method(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the fork; what returns the fork, returns this module."""
        result = method(*args, **kwargs)
        return self if result is self.model else result


def is_of_library(kind: type, name: str) -> bool:
    """Whether a class has a method from a library that would not change what was captured."""
    owner = next((each for each in kind.__mro__ if name in vars(each)), kind)
    parts = owner.__module__.split(".")
    prefixes = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return name not in OF_LIBRARY and not prefixes.isdisjoint(LIBRARY)
