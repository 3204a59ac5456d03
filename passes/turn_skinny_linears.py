"""Multiply a large weight with few rows the other way round.

Legal because ``x @ W.T`` and ``(W @ x.T).T`` are the same sums; the order in which a kernel
adds them may differ, so this is done only where a compiler follows, whose own kernels differ
from eager ones as well:

    %linear : f32[2, 2304] = linear(%x, %weight, %bias)         ; x is f32[2, 384]
 -> %mm : f32[2304, 2] = mm(%weight, t(%x)) ; contiguous(add(t(%mm), %bias)) : f32[2, 2304]

A product of few rows reads its weight from memory once for very little arithmetic. BLAS on
CPUs packs the weight, as it would for a large product, unless the weight stands on the left:
measured on two cores, 2 x 384 by 2304 takes 0.56 ms and 0.13 ms, 16 rows 0.65 and 0.41.
Modulations of a diffusion transformer are of this kind, one per block and step.

Leaves alone: other devices and dtypes (bfloat16 gains nothing), one row, many rows.

Source: the measurement above; the identity is that of transposed products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .support.editing import replace_calls
from .support.graphs import tensor_value
from .support.products import FEW_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

aten = torch.ops.aten


def turn_skinny_linears(gm: fx.GraphModule) -> int:
    """Turn linears of few rows; the number turned."""
    return replace_calls(gm.graph, aten.linear.default, is_skinny, write_product)


def is_skinny(node: fx.Node) -> bool:
    """Whether a linear maps a float32 CPU matrix of few rows."""
    value = tensor_value(node)
    return (
        value is not None
        and value.dim() == 2
        and value.shape[0] in FEW_ROWS
        and value.dtype == torch.float32
        and value.device.type == "cpu"
    )


def write_product(linear: fx.Node, call: Callable[..., fx.Node]) -> fx.Node:
    """Write one linear as a product from the left."""
    x, weight, *bias = linear.args
    product = call(aten.mm.default, weight, call(aten.t.default, x))
    result = call(aten.t.default, product)
    if bias and bias[0] is not None:
        result = call(aten.add.Tensor, result, bias[0])
    return call(aten.contiguous.default, result)  # as the linear's, for later views
