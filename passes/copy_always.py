"""Copy also what is contiguous already, so that no layout depends on the number of samples.

Legal because a copy has the same values:

    %contiguous = contiguous(%x)    ; %x is f32[s, 16, 32] strides (736, 32, 1), offset 224
 -> %clone = clone(%x, memory_format=contiguous_format)

With one sample ``%x`` is contiguous as it is: its strides and its offset would go on to the
next region, which was compiled for those of a copy.

Leaves alone: everything else. For graphs of any batch size only; elsewhere a capture has no
copy that does nothing.

Source: ``torch.compile`` guards on strides and storage offsets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import fx

aten = torch.ops.aten


def copy_always(gm: fx.GraphModule) -> int:
    """Let what makes contiguous copy in any case; the number of copies."""
    nodes = gm.graph.find_nodes(op="call_function", target=aten.contiguous.default)
    for node in nodes:
        node.target = aten.clone.default
        node.args = node.args[:1]
        node.kwargs = {"memory_format": torch.contiguous_format}
    return len(nodes)
