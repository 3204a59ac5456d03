"""Programs whose operators write to tensors, as ones whose operators do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

aten = torch.ops.aten


def writes(exported: ExportedProgram) -> bool:
    """Whether an operator of a program writes to a tensor."""
    targets = (node.target for node in exported.graph.nodes if node.op == "call_function")
    return any(
        isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
        for target in targets
    )


def trace_again(exported: ExportedProgram) -> ExportedProgram:
    """The same program without writes, and with casts that autocast makes as operators."""
    spell_diagonals(exported.graph)
    exported.graph_module.recompile()
    traced: ExportedProgram = exported.run_decompositions({})
    return traced


def spell_diagonals(graph: fx.Graph) -> None:
    """Fill the diagonals of matrices through views of them.

    ``fill_diagonal_`` writes through ``as_strided``, of which torch cannot do without where
    it stands on a view: the masks of perturbed attention guidance are made so.
    """
    for node in graph.find_nodes(op="call_function", target=aten.fill_diagonal_.default):
        matrix, value, *wrap = node.args
        shape = node.meta["val"].shape
        if len(shape) != 2 or (any(wrap) and shape[0] > shape[1]):
            continue  # the diagonal of more dimensions, or one that begins anew
        with graph.inserting_before(node):
            diagonal = graph.call_function(aten.diagonal.default, (matrix,))
            filled = graph.call_function(aten.fill_.Scalar, (diagonal, value))
        for part in (diagonal, filled):
            part.meta = {**node.meta, "val": node.meta["val"].diagonal()}
        node.replace_all_uses_with(matrix)
        graph.erase_node(node)
