"""Dynamic dimensions of a freed region's inputs, in the words of ``torch.compile``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.fx.experimental.dynamic_spec import IntVar, ParamsSpec, TensorSpec

from dqar_fx.passes.support.editing import generate_code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx

    from dqar_fx.passes.support.batch_sizes import FreeLayout, LinearSize


def spell_shapes(gm: fx.GraphModule) -> dict[str, Any]:
    """Keywords of ``torch.compile`` for a freed graph; none if no input is dynamic.

    Sizes are declared rather than marked on tensors, and have no value while the graph is
    traced, so that a batch of one is not set apart.
    """
    generate_code(gm)
    names = list(inspect.signature(gm.forward).parameters)
    inputs = zip(names, gm.graph.find_nodes(op="placeholder"), strict=True)
    layouts: dict[str, FreeLayout | None] = {
        name: node.meta.get("layout") for name, node in inputs
    }
    free = {name: each for name, each in layouts.items() if each is not None and each.is_free}
    if not free:
        return {}
    return {"shapes_spec": ParamsSpec(spell_layouts(free))}


def spell_layouts(layouts: Mapping[str, FreeLayout]) -> dict[str, Any]:
    """Each layout by the number of samples, or by the smallest multiple of it that occurs."""
    lines = {size for layout in layouts.values() for size in layout.shape if size.times}
    unit = min((line.times for line in lines if not line.plus), default=0)
    samples = IntVar("samples", min=1)

    def spell(line: LinearSize) -> Any:
        if not line.times:
            return None
        if not unit or line.times % unit:
            return IntVar(min=1)
        times = line.times // unit
        spelt: Any = samples if times == 1 else samples * times
        return spelt + line.plus if line.plus else spelt

    return {
        name: TensorSpec([spell(line) for line in layout.shape])
        for name, layout in layouts.items()
    }
