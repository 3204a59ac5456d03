"""What a denoiser is, in a few words and numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from dqar_fx.passes.support.graphs import tensor_value
from dqar_fx.passes.support.inner_tensors import inner_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.inspect.amounts import Amounts

SI_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
LIST_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def describe_model(denoiser: Denoiser) -> dict[str, str]:
    """Name the model, its inputs, its sites and how it is lowered."""
    program = denoiser.program
    count = sum(parameter.numel() for parameter in denoiser.model.parameters())
    held = (each for p in denoiser.model.parameters() for _, each in inner_tensors(p))
    dtypes = sorted({str(each.dtype).removeprefix("torch.") for each in held})
    kinds = dict.fromkeys(site.kind for site in program.explanation.sites)
    inputs = [
        f"{node.target} {describe_tensor(value.dtype, value.shape)}"
        for node in program.inputs.graph.find_nodes(op="placeholder")
        if (value := tensor_value(node)) is not None
    ]
    return {
        "model": type(denoiser.model).__name__,
        "parameters": f"{quantity(count)} ({', '.join(dtypes)})",
        "inputs": ", ".join(inputs),
        "sites": f"{len(program.table.sites)} ({', '.join(kinds)})",
        "lowering": program.lowering.backend.name,
        "tier": program.explanation.said_tier,
    }


def describe_tensor(dtype: torch.dtype, shape: Iterable[int]) -> str:
    """Describe a tensor as ``float32[2, 4, 32, 32]``."""
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def quantity(value: float) -> str:
    """Write a value as ``118.4 G``: four digits at most, and the prefix of a unit."""
    for size, prefix in SI_PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:.4g} "


def generalise(path: str) -> str:
    """Write ``transformer_blocks.3.attn1.to_q`` as ``transformer_blocks.*.attn1.to_q``."""
    return LIST_INDEX.sub("*", path)


def describe_amounts(saved: Amounts) -> str:
    """Write ``12.3 GMACs, 4.5 MB of parameters, 6.7 MB of activations``."""
    return (
        f"{quantity(saved.macs)}MACs, {saved.parameter_bytes / 1e6:.1f} MB of parameters, "
        f"{saved.activation_bytes / 1e6:.1f} MB of activations"
    )
