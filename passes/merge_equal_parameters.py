"""Let the conditioning read one of several equal parameters.

Legal because the tensors are equal bit for bit, strides included:

    %a : f32[360, 60] = get_attr[transformer_blocks.0.norm1.emb.linear.weight]
    %b : f32[360, 60] = get_attr[transformer_blocks.1.norm1.emb.linear.weight]
 -> %a : f32[360, 60] = get_attr[transformer_blocks.0.norm1.emb.linear.weight]  ; read by both

The expressions that this makes equal are computed once by `merge_duplicates`. In DiT as
diffusers converts it, every block holds a copy of one timestep and label embedder: 28 copies
are evaluated, and held, where one would do.

Leaves alone: weights of adapters, which may be others soon, and what a step reads. There
equal tensors are chance, such as biases that are zero, and blocks that share one would no
longer be alike. Tensors without values (meta) stay, too.

Source: common subexpression elimination, with parameters compared by value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .support.adapter_paths import is_of_adapter
from .support.conditioning_nodes import find_conditioning
from .support.equal_tensors import find_tensor, group_equal
from .support.graphs import parameter_path

if TYPE_CHECKING:
    from torch import fx


def merge_equal_parameters(gm: fx.GraphModule) -> int:
    """Let users of a parameter read the first one that equals it; the number merged."""
    hoisted = frozenset(find_conditioning(gm))
    nodes = [
        node
        for node in gm.graph.nodes
        if node.op == "get_attr" and parameter_path(node) and hoisted.issuperset(node.users)
        if not is_of_adapter(str(node.target))
    ]
    tensors = [find_tensor(gm, str(node.target)) for node in nodes]
    rewrites = 0
    for first, *others in group_equal(tensors):
        for other in others:
            nodes[other].replace_all_uses_with(nodes[first])
            gm.graph.erase_node(nodes[other])
            rewrites += 1
    return rewrites
