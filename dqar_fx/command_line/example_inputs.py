"""Example inputs of a denoiser: what its forward asks for, sized by its config.

What is not known by name must be given. Values are such that the model can be run.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import CaptureError

from .geometry import Geometry, NoSizeError, Sizes
from .input_table import find_maker, make

if TYPE_CHECKING:
    import inspect

    from torch import nn

GIVE = "give it with --input {name}=SHAPE:DTYPE, such as --input {name}=2x77x768:float32"


def derive_inputs(model: nn.Module, sizes: Sizes) -> dict[str, Any]:
    """Keyword arguments of one call of a model.

    Raises:
        CaptureError: An input that the model requires is neither known nor given.
    """
    geometry = Geometry(model, sizes)
    unknown = [name for name in sizes.given if name not in geometry.parameters]
    if unknown:
        raise CaptureError(
            f"{geometry.name} has no input {unknown[0]!r}; its inputs are "
            f"{', '.join(geometry.parameters)}"
        )
    values = {
        name: derive_input(name, parameter, geometry)
        for name, parameter in geometry.parameters.items()
    }
    return {name: value for name, value in values.items() if value is not None}


def derive_input(name: str, parameter: inspect.Parameter, geometry: Geometry) -> Any:
    """One of them; None to leave it out, as those that may be left out and are not known.

    Raises:
        CaptureError: It is required, and neither known nor given.
    """
    given = geometry.sizes.given
    if name in given:
        value = given[name]
        return value.to(geometry.device) if isinstance(value, torch.Tensor) else value
    maker = find_maker(name, geometry)
    is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    is_required = parameter.default is parameter.empty and not is_variadic
    if maker is None:
        reason = "no example is known for it"
    else:
        try:
            return make(maker, geometry)
        except NoSizeError as error:
            reason = f"its shape cannot be told, since {error}"
    if not is_required:
        return None
    raise CaptureError(f"{geometry.name}, input {name!r}: {reason}: {GIVE.format(name=name)}")


def input_of(text: str) -> tuple[str, Any]:
    """A converter for argparse: ``name=2x77x768:float32``, or ``name=none``.

    Raises:
        ArgumentTypeError: It is none of these.
    """
    name, _, rest = text.partition("=")
    shape, _, dtype_name = rest.partition(":")
    if name.isidentifier() and rest == "none":
        return name, None
    dtype = getattr(torch, dtype_name or "float32", None)
    sizes = shape.split("x") if shape else []
    all_sizes = all(size.isdecimal() for size in sizes)
    if not (name.isidentifier() and sizes and all_sizes and isinstance(dtype, torch.dtype)):
        raise argparse.ArgumentTypeError(
            "expected NAME=SHAPE:DTYPE such as guidance=2:float32 or ids=512x3, or NAME=none, "
            f"found {text!r}"
        )
    return name, torch.zeros([int(size) for size in sizes], dtype=dtype, device="meta")
