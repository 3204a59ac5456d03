"""Cut a graph into regions, and let equal ones share one graph.

Legal because a region is a run of nodes that are contiguous in execution order: whatever it
reads is computed before it, whatever reads it comes after:

    24 nodes of transformer_blocks.0     ; %x is f32[2, 36, 60]
    24 nodes of transformer_blocks.1     ; %y is f32[2, 36, 60]
 -> %run_1 = call_module[region_1](%x, ..., weights of 0)
    %run_2 = call_module[region_1](%y, ..., weights of 1)

Parameters and slots are inputs of a region, so that blocks of equal structure are calls of
one graph, which is compiled once. Given no blocks, the whole graph becomes one region.

Leaves alone: stages, which are outlined already.

Source: PyTorch tutorial "regional compilation"; design of ``torch.compiler`` nested regions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .support.blocks import find_runs
from .support.editing import move_to_submodule
from .support.graphs import structure_of, used_by_others

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import fx


def outline_regions(gm: fx.GraphModule, blocks: Collection[str] = ()) -> int:
    """Outline each run, by block; the number of region calls."""
    shared: dict[str, str] = {}
    runs = find_runs(gm.graph.nodes, blocks)
    for number, (path, run) in enumerate(runs):
        inside = frozenset(run)
        outputs = [node for node in run if used_by_others(node, inside)]
        call = move_to_submodule(gm, run, outputs, f"run_{number}", before=run[-1].next)
        call.meta["block"] = path
        share(gm, call, shared)
    return len(runs)


def share(gm: fx.GraphModule, call: fx.Node, shared: dict[str, str]) -> None:
    """Point a call at the first graph of its structure; ``shared`` knows those."""
    name = str(call.target)
    body = gm.get_submodule(name)
    gm.delete_submodule(name)
    structure = structure_of(body)  # type: ignore[arg-type]
    if structure not in shared:
        shared[structure] = f"region_{len(shared)}"
        gm.add_submodule(shared[structure], body)
    call.target = shared[structure]
