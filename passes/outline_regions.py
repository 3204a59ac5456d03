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

import operator
from typing import TYPE_CHECKING

from torch import fx

from .support.blocks import find_runs
from .support.editing import copy_node, extract
from .support.graphs import StructureSpeller, describe_value, graph_inputs, used_by_others

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def outline_regions(gm: fx.GraphModule, blocks: Collection[str] = ()) -> int:
    """Outline each run, by block; the number of region calls."""
    runs = find_runs(gm.graph.nodes, blocks)
    outlined = OutlinedGraph(gm)
    inside = {node for _, run in runs for node in run}
    ends = {run[-1]: (path, run) for path, run in runs}
    for node in gm.graph.nodes:
        if node not in inside:
            outlined.copy(node)
        elif node in ends:
            outlined.call(*ends[node])
    gm.graph = outlined.graph
    return len(runs)


class OutlinedGraph:
    """A graph that is written from another, with calls of regions in the place of runs.

    Equal runs are told by their text, so that one of each kind alone is copied.

    Args:
        gm: The other graph, which is given the regions.

    Attributes:
        graph: What is written.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm, self.graph = gm, fx.Graph(tracer_cls=gm.graph._tracer_cls)
        self._copies: dict[fx.Node, fx.Node] = {}
        self._regions: dict[str, str] = {}
        self._num_calls = 0

    def copy(self, node: fx.Node) -> None:
        """Write a node that is in no run."""
        self._copies[node] = copy_node(self.graph, node, self._copies.__getitem__)

    def call(self, path: str, run: Sequence[fx.Node]) -> None:
        """Write the call of the region that a run is."""
        inside = frozenset(run)
        inputs = graph_inputs(run)
        outputs = [node for node in run if used_by_others(node, inside)]
        name = self._region_of(run, inputs, outputs)
        given = tuple(map(self._copies.__getitem__, inputs))
        caller = self.graph.create_node(
            "call_module", name, given, name=f"run_{self._num_calls}"
        )
        self._num_calls += 1
        caller.meta.update(val=tuple(node.meta.get("val") for node in outputs), block=path)
        for place, node in enumerate(outputs):
            item = self.graph.call_function(operator.getitem, (caller, place))
            item.meta.update(node.meta)
            self._copies[node] = item

    def _region_of(
        self, run: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
    ) -> str:
        """The region of a run's structure, which is made of the first run that has it."""
        speller = StructureSpeller(self._gm, describe_value)
        for node in inputs:
            speller.add_input(node)
        for node in run:
            speller.add(node)
        speller.add_output(outputs)
        structure = "\n".join(speller.lines)
        if structure not in self._regions:
            self._regions[structure] = name = f"region_{len(self._regions)}"
            self._gm.add_submodule(name, extract(self._gm, run, outputs)[0])
        return self._regions[structure]
