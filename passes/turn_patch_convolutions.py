"""Write a convolution over patches that do not overlap as a linear of these patches.

Legal because each result is the same sum; a kernel may add in another order, so this is for
compilers only:

    %conv2d : f32[s, 60, 6, 6] = conv2d(%x, %weight, %bias, [2, 2])    ; x is f32[s, 4, 12, 12]
 -> %linear : f32[s, 6, 6, 60] = linear(patches of %x, reshape(%weight, [60, 16]), %bias)
    %contiguous : f32[s, 60, 6, 6] = contiguous(permute(%linear, [0, 3, 1, 2]))

The strides that a convolution's result has depend on the kernel that is chosen for its sizes.
Where the number of samples is not known while a graph is compiled, the compiler cannot choose,
assumes one layout and meets another. A linear has one layout.

Leaves alone: patches that overlap or leave gaps, padding, dilation, groups, and images that
are no whole number of patches.

Source: patch embedding of vision transformers (Dosovitskiy et al. 2021, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .support.editing import replace_calls
from .support.graphs import tensor_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

aten = torch.ops.aten


def turn_patch_convolutions(gm: fx.GraphModule) -> int:
    """Turn convolutions over separate patches; the number turned."""
    return replace_calls(gm.graph, aten.conv2d.default, is_over_patches, write_linear)


def is_over_patches(node: fx.Node) -> bool:
    """Whether each element of the image is read by one element of the result's grid."""
    x, weight = (tensor_value(source) for source in node.all_input_nodes[:2])
    if x is None or weight is None or x.dim() != 4:
        return False
    stride, padding, dilation, groups = options_of(node)
    patch = tuple(weight.shape[2:])
    is_whole = not any(n % part for n, part in zip(x.shape[2:], patch, strict=True))
    is_plain = padding == (0, 0) and dilation == (1, 1) and groups == 1
    return is_plain and is_whole and stride == patch


def options_of(node: fx.Node) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups of a convolution; numbers for both directions."""
    names = ("stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    given |= {"groups": 1, **dict(zip(names, node.args[3:], strict=False))}
    given |= {name: node.kwargs[name] for name in names if name in node.kwargs}
    pairs = (tuple(given[name]) * 2 for name in names[:3])
    return *(pair[:2] for pair in pairs), given["groups"]


def write_linear(conv: fx.Node, call: Callable[..., fx.Node]) -> fx.Node:
    """Write one convolution as a linear of patches."""
    x, weight, *bias = conv.all_input_nodes
    _, channels, height, width = x.meta["val"].shape
    out, _, down, across = weight.meta["val"].shape
    grid = height // down, width // across
    shape = [-1, channels, grid[0], down, grid[1], across]
    apart = call(aten.reshape.default, x, shape)
    cut = call(aten.permute.default, apart, [0, 2, 4, 1, 3, 5])
    patches = call(aten.reshape.default, cut, [-1, *grid, channels * down * across])
    matrix = call(aten.reshape.default, weight, [out, -1])
    rows = call(aten.linear.default, patches, matrix, *bias)
    result = call(aten.permute.default, rows, [0, 3, 1, 2])
    return call(aten.contiguous.default, result)  # as the convolution's, for later views
