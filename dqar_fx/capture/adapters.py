"""LoRA adapters as inputs of a graph: only those that compute, by their place, with scales.

What PEFT's layers compute depends on which adapters are active, of which ranks; their names,
weights and scales are values. In a copy of a model that is captured, layers have their active
adapters alone, under names that tell the place, and scales that are buffers. So one graph is
for all adapters of one structure, and another one is put into it by `bind_weights`.

Source: the layers are those of PEFT, ``peft.tuners.lora``; the scale of a call is that of
``apply_lora_scale`` in diffusers.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.adapter_paths import adapter_name, scale_name
from dqar_fx.passes.support.equal_tensors import memory_of, tensor_layout

from .compiled import plain_name
from .quantised import open_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    Undo = Callable[[], None]

UNREAD = ("scaling", "lora_alpha", "r", "use_rslora")
"""Attributes of a layer, by adapter, that its forward does not read, or as buffers only."""
LOOKING = RLock()
"""Held while adapters are looked at, or a call of a model that has some runs; taken before any
other lock."""
SETTINGS = (
    "peft_config",
    "lora_scale",
    "_hf_peft_config_loaded",
    "_prepare_lora_hotswap_kwargs",
    "_safe_fusing",
)
"""Attributes of a model with settings of all its adapters, which no forward reads."""


@dataclass(frozen=True)
class ModelInputs:
    """What a model gives to the graphs that were captured of it.

    Attributes:
        tensors: Parameters and buffers, by the names that they have in graphs.
        scales: Of adapters, by the names of the buffers that have them in graphs.
    """

    tensors: Mapping[str, torch.Tensor]
    scales: Mapping[str, float]

    @classmethod
    def of(cls, model: nn.Module, factor: float = 1.0) -> ModelInputs:
        """What a model gives now; all scales are multiplied by a factor."""
        with one_at_a_time(model):
            scales = {
                f"{path}.{scale_name(place)}": factor * float(layer.scaling[name])
                for path, layer in find_layers(model)
                for place, name in enumerate(find_active(layer))
            }
            with only_active_adapters(model):
                return cls(named_tensors(model), scales)


@dataclass(eq=False)
class Bound:
    """What the tensors of a captured graph are, and of a model that runs around it.

    Attributes:
        stamp: What its weights were taken from is in the state of this object.
        version: How often tensors of it were replaced.
        scales: Those that were written to it.
    """

    stamp: object = None
    version: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)

    def take(self, given: ModelInputs, stamp: object, *modules: nn.Module) -> None:
        """Let modules have what a model gives, as it is at a stamp.

        Raises:
            ValueError: Another layout of a tensor is needed.
        """
        replaced = [bind_weights(module, given, self.scales) for module in modules]
        self.version += any(replaced)
        self.scales, self.stamp = given.scales, stamp

    def let_go(self, given: ModelInputs, *modules: nn.Module) -> None:
        """Let modules hold nothing of what a model gives, until they take it again."""
        for module in modules:
            for name, own in named_tensors(module).items():
                if name in given.tensors:
                    empty = torch.empty_strided(
                        own.shape, own.stride(), dtype=own.dtype, device=own.device
                    )
                    empty.untyped_storage().resize_(0)  # of the same layout, without bytes
                    own.data = empty
        self.version += 1
        self.stamp = None

    @classmethod
    def to(cls, gm: torch.fx.GraphModule) -> Bound:
        """That of a graph, whoever uses it."""
        found: Bound = gm.meta.setdefault("bound", cls())
        return found


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, each by all the names that it has in a graph."""
    parameters = module.named_parameters(remove_duplicate=False)
    named = chain(parameters, module.named_buffers(remove_duplicate=False))
    return dict(pair for name, each in named for pair in open_tensor(name, each))


@torch.no_grad()
def bind_weights(module: nn.Module, given: ModelInputs, scales: Mapping[str, float]) -> bool:
    """Let a graph, or a fork with active adapters alone, have what a model gives.

    Args:
        module: The graph or fork.
        given: What it is given.
        scales: Those that were written to it before.

    Returns:
        Whether tensors were replaced.

    Raises:
        ValueError: Another layout of a tensor is needed.
    """
    is_replaced = False
    for name, own in named_tensors(module).items():
        if name in given.scales:
            if scales.get(name) != given.scales[name]:
                own.fill_(given.scales[name])
        elif name in given.tensors and memory_of(own) != memory_of(given.tensors[name]):
            theirs = given.tensors[name]
            if tensor_layout(own) != tensor_layout(theirs):
                raise ValueError(f"{name} is of another layout")
            own.data = theirs.data
            is_replaced = True
    return is_replaced


# ---- layers ------------------------------------------------------------------------------


def find_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers of a model with adapters that can be told apart, by path."""
    layers = sys.modules.get("peft.tuners.lora.layer")  # else no model has one
    if layers is None:
        return []
    known = (layers.Linear, layers.Embedding, layers._ConvNd)
    if not holds_any(model, known):
        return []
    return [(path, each) for path, each in model.named_modules() if isinstance(each, known)]


def holds_any(model: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether a module of a model is of some kinds: asked before paths are made for all."""
    seen, front = set[int](), [model]
    while front:
        module = front.pop()
        if id(module) not in seen:
            seen.add(id(module))
            if isinstance(module, kinds):
                return True
            front += [each for each in module._modules.values() if each is not None]
    return False


def has_other_adapters(model: nn.Module) -> bool:
    """Whether a model has layers with adapters that are not known here."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return False
    if not holds_any(model, (tuners.BaseTunerLayer,)):
        return False
    known = {id(layer) for _, layer in find_layers(model)}
    others = (each for each in model.modules() if id(each) not in known)
    return any(isinstance(each, tuners.BaseTunerLayer) for each in others)


def find_scaled_argument(model: nn.Module) -> str | None:
    """The argument whose ``"scale"`` multiplies that of adapters, as diffusers takes it.

    Its ``apply_lora_scale`` stands before the forward, and knows the name. None where no such
    thing does, or where adapters are not known here.
    """
    function: Any = type(model).forward
    code = getattr(function, "__code__", None)
    if code is None or not hasattr(function, "__wrapped__") or has_other_adapters(model):
        return None
    held = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    name = held["kwargs_name"].cell_contents if "kwargs_name" in held else None
    return name if isinstance(name, str) else None


def refuse_unmerging(model: nn.Module) -> None:
    """Raise for layers whose forward would write to weights, which a denoiser shares.

    Raises:
        DqarError: Adapters are disabled that were merged.
    """
    for path, layer in find_layers(model):
        if layer.disable_adapters and layer.merged:
            raise DqarError(
                f"{path}: adapters {layer.merged_adapters} are merged into weights, and "
                "disabled. Their layer would take them out again in a call. Do so before: "
                "pipe.unfuse_lora(), or enable them"
            )


def unmerge_disabled(model: nn.Module) -> None:
    """Take adapters out of weights where they were merged and are disabled, as calls do."""
    for _, layer in find_layers(model):
        if layer.disable_adapters and layer.merged:
            layer.unmerge()


def adapter_state(layer: Any) -> tuple[object, ...]:
    """What a layer does with its adapters: scales, those that are active, those merged."""
    scales = {name: float(value) for name, value in layer.scaling.items()}
    return scales, layer.active_adapters, layer.disable_adapters, layer.merged_adapters


def base_name(name: str) -> str:
    """The name of a weight where no adapters are around its layer, and nothing is compiled."""
    return plain_name(name).replace(".base_layer.", ".")


def find_active(layer: Any) -> list[str]:
    """The adapters that a layer computes with, in their order."""
    if layer.disable_adapters or layer.merged:
        return []
    own = {*layer.lora_A, *layer.lora_embedding_A}
    return [name for name in layer.active_adapters if name in own]


def keep_active_adapters(model: nn.Module) -> list[Undo]:
    """Let layers of a model have their active adapters alone; what undoes that, last first.

    Where its forward may change scales by itself, all stay as they are: numbers of a graph.
    """
    undo: list[Undo] = []
    for _, layer in find_layers(model) if find_scaled_argument(model) else ():
        reduce_layer(layer, undo)
    for name in SETTINGS:
        take_out(vars(model), name, undo)
    return undo


def one_at_a_time(model: nn.Module) -> AbstractContextManager[object]:
    """Lets one thread at a time look at a model whose layers are changed while it looks."""
    return LOOKING if find_layers(model) else nullcontext()


@contextmanager
def only_active_adapters(model: nn.Module) -> Iterator[None]:
    """While inside, layers of a model have their active adapters alone."""
    with one_at_a_time(model):
        undo = keep_active_adapters(model)
        try:
            yield
        finally:
            for each in reversed(undo):
                each()


def put(held: dict[str, Any], name: str, value: Any, undo: list[Undo]) -> None:
    """Replace an entry of what an object holds."""
    before = held[name]
    undo.append(lambda: held.__setitem__(name, before))
    held[name] = value


def take_out(held: dict[str, Any], name: str, undo: list[Undo]) -> None:
    """Take an entry out of what an object holds, if it is there."""
    if name in held:
        before = held.pop(name)
        undo.append(lambda: held.__setitem__(name, before))


def reduce_layer(layer: Any, undo: list[Undo]) -> None:
    """Let a layer have its active adapters alone, named by place, with scales as buffers."""
    names = find_active(layer)
    renamed = {name: adapter_name(place) for place, name in enumerate(names)}
    known = {*layer.r, *layer.lora_A, *layer.lora_embedding_A, *layer.scaling}
    values = {name: float(layer.scaling[name]) for name in names}
    for held in (vars(layer), layer._modules):
        for name, value in list(held.items()):
            if name in UNREAD:
                put(held, name, {}, undo)
            elif is_by_adapter(value, known):
                kept = {new: value[old] for old, new in renamed.items() if old in value}
                put(held, name, type(value)(kept), undo)
    put(vars(layer), "_active_adapter", list(renamed.values()), undo)
    put(vars(layer), "_disable_adapters", not names, undo)
    put(vars(layer), "merged_adapters", [], undo)
    for place, name in enumerate(names):
        add_scale(layer, scale_name(place), values[name], next(layer_weights(layer)), undo)
    own_class: type = type(layer)
    undo.append(lambda: setattr(layer, "__class__", own_class))
    layer.__class__ = scaled_class(own_class)


def is_by_adapter(value: object, known: set[str]) -> bool:
    """Whether a value of a layer has an entry for each of some adapters."""
    if type(value) is dict or isinstance(value, (nn.ModuleDict, nn.ParameterDict)):
        return len(value) > 0 and known.issuperset(value)
    return False


def layer_weights(layer: Any) -> Iterator[torch.Tensor]:
    """The weights of adapters of a layer."""
    for name in layer.adapter_layer_names:
        yield from getattr(layer, name).parameters()


def add_scale(
    layer: nn.Module, name: str, value: float, weight: torch.Tensor, undo: list[Undo]
) -> None:
    """Give a layer a buffer with a scale, a number as exact as products with it are."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    scale = torch.tensor(value, dtype=dtype, device=weight.device)
    layer.register_buffer(name, scale, persistent=False)
    undo.append(lambda: delattr(layer, name))


@cache
def scaled_class(kind: type) -> type:
    """A class of layers whose scales are their buffers, by the place of the adapter."""

    def scaling(layer: Any) -> dict[str, torch.Tensor]:
        names = [adapter_name(place) for place in range(len(layer._active_adapter))]
        return {name: layer._buffers[scale_name(i)] for i, name in enumerate(names)}

    body = {"scaling": property(scaling), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)
