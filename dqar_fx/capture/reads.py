"""What a graph is specialised by: values that the forward read on the host when it was traced.

They do not change in a run, but the next request may have others. A small graph beside the
step's gives from the inputs of a call what was read then; the step's graph is right for the
call exactly where that has the same bits.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from dqar_fx.passes import normalise
from dqar_fx.passes.support.editing import make_module
from dqar_fx.passes.support.equal_tensors import find_tensor
from dqar_fx.passes.support.graphs import graph_outputs, is_random, written_inputs

from .scopes import without_autocast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_SHOWN = 8
"""Elements of a tensor that are written out."""


@dataclass(frozen=True)
class Read:
    """One tensor that was read on the host.

    Attributes:
        value: What it was.
        sources: Names of the inputs that it depends on.
        place: The module and line that read it.
    """

    value: torch.Tensor
    sources: tuple[str, ...]
    place: str

    def __str__(self) -> str:
        sources = ", ".join(self.sources) or "parameters"
        return f"{sources} read{self.place}: {spell_value(self.value)}"


@dataclass(frozen=True)
class Reads:
    """All that was read, and how it follows from the inputs of a call.

    Attributes:
        gm: Maps the flat leaves of a call to the tensors that are read.
        reads: What each was.
        inputs: Positions of the leaves that are looked at.
        cast_on: As of the `Capture`.
    """

    gm: fx.GraphModule
    reads: tuple[Read, ...]
    inputs: tuple[int, ...]
    cast_on: tuple[str, ...] = ()

    @classmethod
    def split_off(
        cls, gm: fx.GraphModule, reads: Sequence[Read], cast_on: tuple[str, ...]
    ) -> Reads:
        """Take the last outputs of a graph out of it: they are what was read.

        Raises:
            ValueError: One of them is drawn at random.
        """
        outputs = graph_outputs(gm.graph)
        first = len(outputs) - len(reads)
        own = make_module(gm, copy.deepcopy(gm.graph))
        keep_outputs(own, range(first, len(outputs)))
        keep_outputs(gm, range(first))
        normalise(own)  # dropout of no effect is not random
        for node in own.graph.nodes:
            if is_random(node):
                raise ValueError(f"its forward reads random numbers on the host, %{node.name}")
        given = own.graph.find_nodes(op="placeholder")
        inputs = tuple(i for i, node in enumerate(given) if node.users)
        return cls(own, tuple(reads), inputs, cast_on)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The parameters and buffers of the model, and constants, that are looked at."""
        nodes = self.gm.graph.find_nodes(op="get_attr")
        return [find_tensor(self.gm, str(node.target)) for node in nodes]

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def hold(self, leaves: Sequence[Any]) -> bool:
        """Whether a call would read the same; it is computed up to the first difference."""
        with without_autocast(self.cast_on) if self.cast_on else nullcontext():
            return Comparison(self).is_equal(leaves)


class Comparison(fx.Interpreter):
    """Computes what a call would read, and stops where that is another value."""

    def __init__(self, reads: Reads) -> None:
        super().__init__(reads.gm)
        nodes = graph_outputs(reads.gm.graph)
        self._expected: Mapping[fx.Node, torch.Tensor] = {
            node: read.value for node, read in zip(nodes, reads.reads, strict=True)
        }

    def is_equal(self, leaves: Sequence[Any]) -> bool:
        """Whether all is as it was."""
        try:
            self.run(*leaves, enable_io_processing=False)
        except OtherValue:
            return False
        return True

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and compare it."""
        value = super().run_node(n)
        if n in self._expected and not has_same_bits(value, self._expected[n]):
            raise OtherValue
        return value


class OtherValue(Exception):
    """Something is read that has another value than when the graph was captured."""


def keep_outputs(gm: fx.GraphModule, places: range) -> None:
    """Let a graph give some of its outputs, and compute no others."""
    node = gm.graph.output_node()
    outputs = graph_outputs(gm.graph)
    node.args = (tuple(outputs[place] for place in places),)
    for other in reversed(list(gm.graph.nodes)):
        if not (other.users or other.op in ("placeholder", "output") or written_inputs(other)):
            gm.graph.erase_node(other)
    gm.recompile()


def has_same_bits(value: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape have the same bits: -0.0 is not 0.0, NaN is NaN."""
    if (value.shape, value.dtype) != (other.shape, other.dtype):
        return False
    bits = [each.detach().reshape(-1).view(torch.uint8) for each in (value, other)]
    return torch.equal(*bits)


def spell_value(value: torch.Tensor) -> str:
    """A value in short."""
    shown = value.detach().reshape(-1)[:MOST_SHOWN].tolist()
    if value.dim() == 0:
        return str(shown[0])
    more = ", ..." if value.numel() > MOST_SHOWN else ""
    kind = str(value.dtype).removeprefix("torch.")
    return f"{kind}{list(value.shape)} {', '.join(map(str, shown))}{more}"
