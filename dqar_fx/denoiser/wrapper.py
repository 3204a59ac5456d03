"""The wrapper of a transformed model: all that the model has, and its own methods."""

from __future__ import annotations

import copy
import inspect
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from diffusers import ModelMixin
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from dqar_fx.capture.capture import fork_model
from dqar_fx.capture.compiled import find_original, opaque_itself
from dqar_fx.capture.equal_modules import COMPARED
from dqar_fx.capture.offloaded import OF_HOOKS
from dqar_fx.capture.patched import refuse_cache, without_hook
from dqar_fx.capture.quantised import copy_packed, refuse_to_pickle
from dqar_fx.errors import DqarError

from .binding import Binder
from .face import OfModel, make_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARED = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
"""What a denoiser's fork holds, and the denoiser with it."""
REFUSED = {
    "enable_cache": "a denoiser reuses by its own schedule. For another cache give the "
    "pipeline its original model, by dqar_fx.disable(pipe)",
    "enable_group_offload": "its weights are shared with the model that it was made of. Put "
    "group offload on that before transform, and capture='blocks'; or offload the denoiser as "
    "one, by pipe.enable_model_cpu_offload(), or transform with release='host'",
    "enable_layerwise_casting": "hooks would replace forwards that are captured. Cast the "
    "model before transform, and capture='blocks'; or convert the denoiser, by to(dtype)",
    "enable_parallelism": "hooks would replace forwards that are captured. Give the pipeline "
    "its original model, by dqar_fx.disable(pipe)",
}
"""Methods that put hooks around the modules of any model, and what to do instead."""


class Wrapper(nn.Module):
    """Has the original's class, forward signature, attributes, methods and state.

    Methods are applied to the fork, never to the original; what they change, the next call
    follows. So it does with whatever is written to what an attribute handed out.

    Args:
        model: The original; it is not modified.

    Attributes:
        classes: The class of denoisers, and that of the model, which its own is made of.
        model: A fork of it, whose parameters share their storage with the original's, and
            whose modules are the denoiser's.
    """

    classes: tuple[type, type]
    model: nn.Module
    _binder: Binder
    _signature: inspect.Signature

    def __new__(cls, model: nn.Module, *_: Any, **__: Any) -> Self:
        """An object of the class that is made for the model's."""
        made: Self = make_empty(cls, type(find_original(model)))
        return made

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)  # the classes in between are the model's
        original = find_original(model)
        self._share(without_hook(fork_model(original)))
        forward = self.model.forward
        self._signature = inspect.signature(forward)
        asks = self._signature.parameters.get("return_dict")
        is_diffusers = isinstance(original, ModelMixin)
        gives_objects = is_diffusers and asks is not None and asks.default is True
        self._binder = Binder(
            self._signature,
            takes_return_dict=gives_objects,
            as_given=hasattr(forward, "__wrapped__"),
        )

    def _share(self, fork: nn.Module) -> None:
        """Hold what a fork holds."""
        held = {name: vars(fork)[name] for name in SHARED}
        self.__dict__.update(held, model=fork, training=False)

    @property
    @opaque_itself
    def forward(self) -> Callable[..., Any]:
        """One step of one stream; signature and result are the original's."""
        if get_eval_frame_callback():  # no function of ours, which would be compiled, too
            self._note_compiled_caller()
        replaced: Callable[..., Any] | None = self.__dict__.get("_replaced_forward")
        if replaced is not None:
            return replaced
        call = partial(self._forward)
        call.__signature__ = self._signature  # type: ignore[attr-defined]
        return call

    @forward.setter
    def forward(self, replacement: Callable[..., Any]) -> None:
        """Offloading hooks put a forward of their own around this one.

        Raises:
            DqarError: Another cache does.
        """
        refuse_cache(self.model, replacement)
        self.__dict__["_replaced_forward"] = replacement

    if TYPE_CHECKING:

        def _forward(self, *args: Any, **kwargs: Any) -> Any:
            """One step of one stream, which a subclass runs."""

        def _note_compiled_caller(self) -> None:
            """See that what calls is compiled."""

        def _hand_out(self) -> None:
            """Let the fork be changed; what it is then, the next call looks at."""

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

    # ---- what the model has --------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Whatever the denoiser lacks is the fork's."""
        if "model" not in self.__dict__ or name in OF_HOOKS:
            raise AttributeError(f"{self._get_name()} has no attribute {name!r}")
        return self.look_up(name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set the denoiser's own attributes here, all others in the fork."""
        if name in self.__dict__ or not self._is_of_model(name):
            object.__setattr__(self, name, value)
        else:
            self.set_of_model(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__ or not self._is_of_model(name):
            object.__delattr__(self, name)
        else:
            self._hand_out()
            delattr(self.model, name)

    def _is_of_model(self, name: str) -> bool:
        """Whether an attribute that is not here yet is the fork's, which may lack it, too."""
        if "model" not in self.__dict__ or name in OF_HOOKS or is_declared(type(self), name):
            return False
        return not name.startswith("_") or hasattr(self.model, name)

    def set_of_model(self, name: str, value: object) -> None:
        """Set an attribute of the fork, which the next call follows."""
        self._hand_out()
        setattr(self.model, name, value)

    def look_up(self, name: str) -> Any:
        """An attribute of the fork; of a method what calls it for the denoiser.

        Raises:
            AttributeError: The fork has none.
        """
        if type(vars(self.model).get(name, ...)) in COMPARED:
            return vars(self.model)[name]
        if name in REFUSED and isinstance(self.model, ModelMixin):
            return partial(refuse_method, name)
        value = getattr(self.model, name)
        if not (inspect.ismethod(value) and value.__self__ is self.model):
            if not isinstance(value, type) and type(value) not in COMPARED:
                self._hand_out()
            return value

        @wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call_method(value, *args, **kwargs)

        return call

    def _call_method(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the fork; what returns the fork, returns this module."""
        self._hand_out()
        result = method(*args, **kwargs)
        return self if result is self.model else result

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """The denoiser, and the modules of its fork."""
        self._hand_out()
        found: Iterator[tuple[str, nn.Module]] = super().named_modules(*args, **kwargs)
        return found

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules that the fork consists of."""
        self._hand_out()
        return super().named_children()

    def named_parameters(
        self, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The fork's parameters, which share their memory with the original's."""
        return self.model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """The fork's buffers, which share their memory with the original's."""
        return self.model.named_buffers(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            DqarError: The training mode is asked for.
        """
        if mode:
            raise DqarError(
                "a denoiser is for inference only: train the model that it was made of, and "
                "call denoiser.reset() before the denoiser runs again"
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Need no gradients.

        Raises:
            DqarError: Gradients are asked for.
        """
        return self.train(requires_grad)

    def _get_name(self) -> str:
        return f"Denoiser of {type(self).__name__}"

    # ---- copies --------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickles find the class, which no module has under its name."""
        refuse_to_pickle(self.model)
        return make_empty, self.classes, self.__getstate__()  # type: ignore[no-untyped-call]  # torch leaves it so

    def __copy__(self) -> Self:
        """A denoiser over the same fork."""
        copied: Self = make_empty(*self.classes)
        copied.__setstate__(self.__getstate__())  # type: ignore[no-untyped-call]  # torch leaves it so
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A denoiser with a fork of its own, and weights."""
        copied: Self = make_empty(*self.classes)
        memo[id(self)] = copied
        state = self.__getstate__()  # type: ignore[no-untyped-call]  # torch leaves it so
        memo.update(copy_packed(self.model))
        copied.__setstate__(copy.deepcopy(state, memo))
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hold what the copy's own fork holds."""
        nn.Module.__setstate__(self, state)  # type: ignore[no-untyped-call]  # torch leaves it so
        self._share(self.model)


def is_declared(kind: type, name: str) -> bool:
    """Whether a class of the denoiser itself has a name, or says that its objects do."""
    own = [vars(each) for each in kind.__mro__ if issubclass(each, Wrapper)]
    return any(
        name in each.get("__annotations__", ())
        or (name in each and not isinstance(each[name], OfModel))
        for each in own
    )


def refuse_method(name: str, *_: Any, **__: Any) -> NoReturn:
    """Stand for a method that puts hooks around modules.

    Raises:
        DqarError: Always.
    """
    raise DqarError(f"a denoiser has no {name}: {REFUSED[name]}")
