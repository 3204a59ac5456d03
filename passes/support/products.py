"""Products by a weight: where their operands are, and when they are bound by reading it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
PRODUCTS: dict[Any, tuple[int, int, int | None]] = {
    aten.linear.default: (1, 0, 2),
    aten.addmm.default: (2, 1, 0),
    aten.mm.default: (1, 1, None),
}
"""Positions of the weight, of its dimension of outputs, and of the bias."""
FEW_ROWS = range(2, 17)
"""Rows of a product that takes longer to read its weight than to multiply."""


def bias_of(product: fx.Node) -> fx.Node | None:
    """The bias of a product, if it has one."""
    position = PRODUCTS[product.target][2]
    if position is None or position >= len(product.args):
        return None
    given = product.args[position]
    return given if isinstance(given, fx.Node) else None
