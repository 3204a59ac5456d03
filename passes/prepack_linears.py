"""Multiply by weights that are packed once, not at each product.

Legal because packing copies a weight's numbers into the order in which a kernel reads them;
the order of its sums is its own, so this is done only where a compiler follows:

    %linear : f32[2, 256, 1536] = linear(%x, %weight, %bias)     ; weight is f32[1536, 384]
    %gelu = gelu(%linear, approximate='tanh')
 -> %packed : f32[2, 256, 1536] = packed_linear(%x, %weight, %bias, 'gelu', 'tanh')

BLAS packs a weight each time that it multiplies by it, and the activation goes over memory
once more; oneDNN takes a weight that is packed, and applies the activation to what it has in
registers: 512 rows by 384 x 1536 and back, with the activation, take 0.86 of the time on one
core. ``packed`` in the record of a weight's placeholder says that it is to be packed
before the graph runs; a weight that is not is multiplied by as it is, more slowly.

Leaves alone: few rows, which are bound by reading the weight (`turn_skinny_linears` has
those), weights that anything else reads or that flow, biases that the kernel would misread
(strided, or one number for all), other devices and dtypes.

Source: weight prepacking, as in oneDNN and ``torch._inductor`` freezing, which makes weights
constants of a graph, so that no two blocks share one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .support.editing import insert_call
from .support.graphs import parameter_path, tensor_value
from .support.products import FEW_ROWS, bias_of

if TYPE_CHECKING:
    from torch import fx

aten = torch.ops.aten
FUSED_ACTIVATIONS = {
    aten.gelu.default: "gelu",
    aten.silu.default: "swish",
}
"""What the kernel can apply to its result, by oneDNN's name; its ReLU makes NaN zero."""

torch.library.define(
    "dqar_fx::packed_linear",
    "(Tensor x, Tensor weight, Tensor? bias, str activation, str approximate) -> Tensor",
)


@torch.library.impl("dqar_fx::packed_linear", ("CPU", "MkldnnCPU"))
def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    approximate: str,
) -> torch.Tensor:
    """A linear and an activation, by a packed weight or a plain one.

    Args:
        x: ``[..., in]``, float32.
        weight: ``[out, in]``, float32; packed by `pack_weight`, or as it is.
        bias: ``[out]``, or None.
        activation: ``"none"``, ``"gelu"`` or ``"swish"``.
        approximate: How GELU is computed: ``"none"`` or ``"tanh"``.

    Returns:
        ``[..., out]``, contiguous.
    """
    if weight.is_mkldnn:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, activation, [], approximate
        )
        return found
    product = F.linear(x, weight, bias)
    if activation == "gelu":
        return F.gelu(product, approximate=approximate)
    return F.silu(product) if activation == "swish" else product


torch.library.register_fake(
    "dqar_fx::packed_linear",
    lambda x, weight, *_: x.new_empty((*x.shape[:-1], weight.shape[0])),
)
packed_linear = torch.ops.dqar_fx.packed_linear.default


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight ``[out, in]`` as the kernel reads it; needs `can_pack`."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def can_pack() -> bool:
    """Whether this build of PyTorch has oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch leaves it so


def prepack_linears(gm: fx.GraphModule) -> int:
    """Let linears take packed weights, with the activation behind them; their number."""
    weights = [
        w
        for w in gm.graph.find_nodes(op="placeholder")
        if parameter_path(w) is not None
        and w.users
        and all(is_many_rows(u, w) for u in w.users)
    ]
    linears = [linear for weight in weights for linear in weight.users]
    for linear in linears:
        prepack(gm.graph, linear)
    for weight in weights:
        weight.meta["packed"] = True
    return len(linears)


def is_many_rows(node: fx.Node, weight: fx.Node) -> bool:
    """Whether a node maps many rows of float32 on a CPU by a weight."""
    value = tensor_value(node)
    if node.target is not aten.linear.default or node.args[0] is weight or value is None:
        return False
    return (
        node.args[1] is weight
        and len(weight.meta["val"].shape) == 2
        and is_plain_bias(bias_of(node), value.shape[-1])
        and value.shape[:-1].numel() > FEW_ROWS[-1]
        and value.dtype == torch.float32
        and value.device.type == "cpu"
    )


def is_plain_bias(bias: fx.Node | None, num_outputs: int) -> bool:
    """Whether a bias is none, or one number for each output, side by side."""
    if bias is None:
        return True
    value: torch.Tensor = bias.meta["val"]
    return value.shape == (num_outputs,) and value.is_contiguous()


def prepack(graph: fx.Graph, linear: fx.Node) -> None:
    """Write one linear as a product by a packed weight."""
    x, weight = linear.args[:2]
    last, activation, approximate = linear, "none", "none"
    user = next(iter(linear.users), None)
    if user is not None and len(linear.users) == 1 and user.target in FUSED_ACTIVATIONS:
        last, activation = user, FUSED_ACTIVATIONS[user.target]
        approximate = str(user.kwargs.get("approximate", "none"))
    with graph.inserting_before(linear):
        given = x, weight, bias_of(linear), activation, approximate
        product = insert_call(last, packed_linear, *given)
    last.replace_all_uses_with(product)
    for node in dict.fromkeys((last, linear)):
        graph.erase_node(node)
