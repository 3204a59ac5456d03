"""Cuts a guarded graph into regions: the conditioning's stages, each inside, then the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dqar_fx.passes import outline_regions
from dqar_fx.passes.pipeline import ON_REGIONS, select_passes
from dqar_fx.passes.support.runner import fork, ignore, run_passes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from dqar_fx.passes.support.runner import Observer, PassReport


def outline(
    gm: fx.GraphModule, blocks: Sequence[str], observe: Observer = ignore
) -> list[PassReport]:
    """Outline the conditioning's stages, each inside, then the step."""
    passes = select_passes(ON_REGIONS, options={outline_regions: {"blocks": blocks}})
    reports: list[PassReport] = []
    for call in gm.graph.find_nodes(op="call_module", sort=True):
        stage = fork(gm.get_submodule(str(call.target)))  # type: ignore[arg-type]
        setattr(gm, str(call.target), stage)
        call.meta["graph"] = fork(stage)
        reports += run_passes(stage, passes, str(call.target), observe)
    return reports + run_passes(gm, passes, observe=observe)
