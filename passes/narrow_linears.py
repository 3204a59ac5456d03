"""Compute of a linear only the outputs that are read.

Legal because a column of ``x @ W.T + b`` depends on one row of the weight alone:

    %linear : f32[2, 384] = linear(%x, %weight, %bias)          ; weight is f32[384, 64]
    %chunk = chunk(%linear, 6, 1) ; %gate = getitem(%chunk, 2)  ; 0, 1, 3, 4 and 5 are dead
 -> %slice = slice(%weight, 0, 128, 192) ; %slice_1 = slice(%bias, 0, 128, 192)
    %linear : f32[2, 64] = linear(%x, %slice, %slice_1)
    %gate = slice(%linear, 1, 0, 64)

What is read of the product is followed through ``chunk``, ``split``, ``slice``,
``select`` and ``unbind``, also behind a view that cuts its last dimension up and a permutation
of that, as fused projections have them. Rows that touch each other are one run, and each run
is one product over a view of the weight: nothing is copied and nothing is prepared, at the
price of reading ``x`` once per run. A part has the strides of the narrower product.

The order of sums in a kernel may depend on the number of columns (float64 on a CPU differs by
1e-15 of the largest value, float32 and 16 bits were equal in all of 1,480 cases), so that this
is done only where a compiler follows.

Leaves alone: products that are read as a whole, or by anything else; those of which nothing
is read, which dead code elimination takes.

Source: dead code elimination by columns; DQAR report, future work (partial evaluation).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch

from .support.editing import insert_call
from .support.fake_values import refresh_values
from .support.graphs import tensor_value
from .support.products import PRODUCTS, bias_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import fx

aten = torch.ops.aten
SPLITS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
VIEWS = (aten.view.default, aten.reshape.default, aten.unflatten.int)
ColumnRange = tuple[int, int]
"""First of some columns, and the one after the last."""


@dataclass(frozen=True)
class ColumnView:
    """A node that shows some columns of a product.

    Attributes:
        node: The node.
        run: Its columns.
        chain: The view and the permutation between them; none, one or both.
    """

    node: fx.Node
    run: ColumnRange
    chain: tuple[fx.Node, ...] = ()


def narrow_linears(gm: fx.GraphModule) -> int:
    """Narrow linears of which some outputs are dead; the number narrowed."""
    products = [node for node in gm.graph.nodes if node.target in PRODUCTS]
    narrowed = [made for made in (narrow(gm.graph, node) for node in products) if made]
    refresh_values(gm.graph, dict.fromkeys(node for made in narrowed for node in made))
    return len(narrowed)


def narrow(graph: fx.Graph, product: fx.Node) -> list[fx.Node]:
    """What takes the place of one product, if less than all of it is read."""
    parts = find_parts(product)
    if not parts or not is_plain(product):
        return []
    runs = join_runs(part.run for part in parts)
    if runs == [(0, product.meta["val"].shape[-1])]:
        return []
    with graph.inserting_before(product):
        products = {run: narrow_to(product, run) for run in runs}
    for part in parts:
        run = next(run for run in runs if run[0] <= part.run[0] < run[1])
        with graph.inserting_before(part.node):
            part.node.replace_all_uses_with(show_part(part, products[run], run[0]))
    erase_dead(product)
    return list(products.values())


def is_plain(product: fx.Node) -> bool:
    """Whether a product adds a bias, if any, as it is, and per column."""
    bias = bias_of(product)
    return not product.kwargs and (bias is None or bias.meta["val"].dim() == 1)


# ---- what is read ------------------------------------------------------------------------


def find_parts(product: fx.Node) -> list[ColumnView]:
    """What shows columns of a product; none where something reads all of it."""
    value, parts = tensor_value(product), list[ColumnView]()
    if value is None:
        return []
    for user in product.users:
        found = read_view(user, value) if user.target in VIEWS else read_pieces(user, value)
        if found is None:
            return []
        parts += [part for part in found if part.node.users]
    return parts


def read_view(view: fx.Node, source: torch.Tensor) -> list[ColumnView] | None:
    """The parts behind a view of a product, ``[..., n, rest]``; None where it is another."""
    value, dim = view.meta["val"], source.dim() - 1
    if value.shape[:dim] != source.shape[:dim] or value.dim() < dim + 2:
        return None
    width, parts = value.shape[dim + 1 :].numel(), list[ColumnView]()
    for user in view.users:
        is_moved = user.target == aten.permute.default
        chain = (view, user) if is_moved else (view,)
        for reader in user.users if is_moved else (user,):
            found = read_pieces(reader, chain[-1].meta["val"], permuted_dim(chain, dim))
            if found is None:
                return None
            parts += [
                ColumnView(part.node, (part.run[0] * width, part.run[1] * width), chain)
                for part in found
            ]
    return parts


def permuted_dim(chain: tuple[fx.Node, ...], dim: int) -> int:
    """Where a dimension of a view is behind its permutation, if there is one."""
    if len(chain) == 1:
        return dim
    moved = cast("list[int]", chain[1].args[1])
    return [d % len(moved) for d in moved].index(dim)


def read_pieces(user: fx.Node, source: torch.Tensor, dim: int = -1) -> list[ColumnView] | None:
    """What a reader takes of a tensor along a dimension; None where it takes all or more."""
    dim, size, args = dim % source.dim(), source.shape[dim], user.args
    if user.kwargs:
        return None
    if user.target == aten.slice.Tensor and dim_of(args[1:2], source) == dim:
        start, stop, step = cast("list[Any]", [*args[2:5], None, None, None][:3])
        taken = range(size)[slice(start, stop, step)]
        is_run = bool(taken) and taken.step == 1
        return [ColumnView(user, (taken.start, taken.stop))] if is_run else None
    if user.target == aten.select.int and dim_of(args[1:2], source) == dim:
        place = cast("int", args[2]) % size
        return [ColumnView(user, (place, place + 1))]
    if user.target == aten.unbind.int and dim_of(args[1:2], source) == dim:
        return read_items(user, [1] * size)
    if user.target in SPLITS and dim_of(args[2:3], source) == dim:
        return read_items(user, [piece.shape[dim] for piece in user.meta["val"]])
    return None


def dim_of(given: tuple[Any, ...], source: torch.Tensor) -> int:
    """A dimension among arguments; 0 where it is left out, in each of these operators."""
    return int(given[0]) % source.dim() if given else 0


def read_items(split: fx.Node, sizes: Sequence[int]) -> list[ColumnView] | None:
    """The items of a split, and where they are."""
    ends = list(accumulate(sizes))
    if 0 in sizes or any(item.target is not operator.getitem for item in split.users):
        return None
    places = [(item, cast("int", item.args[1])) for item in split.users]
    return [ColumnView(item, (ends[k] - sizes[k], ends[k])) for item, k in places]


def join_runs(runs: Iterable[ColumnRange]) -> list[ColumnRange]:
    """Columns as runs that neither overlap nor touch, given as any runs."""
    joined = list[ColumnRange]()
    for low, high in sorted(runs):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


# ---- what is written ---------------------------------------------------------------------


def narrow_to(product: fx.Node, run: ColumnRange) -> fx.Node:
    """A product of which only a run of columns is computed."""
    weight, dim, bias = PRODUCTS[product.target]
    args: list[Any] = list(product.args)
    args[weight] = insert_call(product, aten.slice.Tensor, args[weight], dim, *run)
    if bias is not None and bias_of(product) is not None:
        args[bias] = insert_call(product, aten.slice.Tensor, args[bias], 0, *run)
    return insert_call(product, product.target, *args)


def show_part(part: ColumnView, product: fx.Node, start: int) -> fx.Node:
    """What a part shows, from a product whose first column is ``start``."""
    low, high = part.run[0] - start, part.run[1] - start
    dim = product.meta["val"].dim() - 1
    shown = product
    if high - low < product.meta["val"].shape[-1]:
        shown = insert_call(part.node, aten.slice.Tensor, shown, dim, low, high)
    if part.chain:
        shown = view_pieces(part.node, shown, part.chain[0], high - low)
        dim = permuted_dim(part.chain, dim)
    if len(part.chain) > 1:
        shown = insert_call(part.node, aten.permute.default, shown, part.chain[1].args[1])
    if part.node.meta["val"].dim() < shown.meta["val"].dim():
        shown = insert_call(part.node, aten.select.int, shown, dim, 0)
    return shown


def view_pieces(like: fx.Node, product: fx.Node, view: fx.Node, num_columns: int) -> fx.Node:
    """The view of a narrower product; leading sizes as they are written, nodes included."""
    dim = product.meta["val"].dim() - 1
    rest = view.meta["val"].shape[dim + 1 :]
    pieces = [num_columns // rest.numel(), *rest]
    if view.target == aten.unflatten.int:
        return insert_call(like, aten.unflatten.int, product, dim, pieces)
    leading = cast("list[Any]", view.args[1])[:dim]
    return insert_call(like, aten.view.default, product, [*leading, *pieces])


def erase_dead(node: fx.Node) -> None:
    """Erase a node and those that read it, of which nothing else is read."""
    for user in list(node.users):
        erase_dead(user)
    node.graph.erase_node(node)
