"""Recipes that only this comparison has: other ways to compile, each as documented."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch._inductor import config

from benchmarks.pareto.bench import Bench
from benchmarks.pareto.contenders import BLOCKS, COMPILED, EAGER, Contender, Entrant
from benchmarks.pareto.rivals.of_diffusers import Hooks

REGIONAL, WHOLE = "regional", "whole"
REGIONAL_PACKED, WHOLE_PACKED = "regional, prepacked", "whole, prepacked"
LOWERINGS: dict[str, str | Mapping[str, Any]] = {
    REGIONAL: REGIONAL,
    WHOLE: WHOLE,
    REGIONAL_PACKED: {"unit": REGIONAL, "prepack": True},
    WHOLE_PACKED: {"unit": WHOLE, "prepack": True},
}
"""How dqar_fx compiles, by mode."""
PACKED = (REGIONAL_PACKED, WHOLE_PACKED)
UNLIMITED = "compiled, no limit of recompiles"
FROZEN = "compiled, freezing"
STOCK = "as documented"
SHOWN = (COMPILED, REGIONAL, STOCK)
"""Modes whose pictures are judged against real ones; no setting has two of them."""
REPEATED = ("BasicTransformerBlock",)
"""What ``DiTTransformer2DModel`` would list for ``compile_repeated_blocks``, if it did."""
LIMIT = 4096
"""Of recompiles, for none."""


@dataclass(frozen=True)
class Peer(Contender):
    """A contender of this comparison.

    Attributes:
        table: What is equal for those that follow one branch table; None for nobody else.
        is_shown: Whether its pictures are judged against real ones: of a setting one mode's
            are, the others' differ by how they round, which their PSNR tells.
    """

    table: str | None = None
    is_shown: bool = True


@dataclass(frozen=True)
class Repeated:
    """The untransformed model with its blocks compiled by ``compile_repeated_blocks``."""

    identity: Mapping[str, Any] = field(default_factory=lambda: {"unit": "repeated blocks"})

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it: with the list of blocks that the model lacks, unless as documented."""
        model: Any = bench.clone()
        if mode != STOCK:
            model._repeated_blocks = list(REPEATED)
        model.compile_repeated_blocks(fullgraph=True)
        return Entrant(model)


@dataclass(frozen=True)
class Frozen:
    """The untransformed model as one graph that owns its weights, packed.

    That is Inductor's ``freezing``; as an option of ``torch.compile`` it does nothing, since
    Dynamo reads it where it is set for all.
    """

    identity: Mapping[str, Any] = field(default_factory=lambda: {"unit": "freezing"})

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it."""
        del mode
        compiled = bench.compile(bench.original, fullgraph=True, dynamic=False)
        return Entrant(compiled, freezing)


@dataclass(frozen=True)
class Hooked:
    """A model with hooks of diffusers, also compiled by block or without a limit.

    Attributes:
        hooks: Attaches them.
    """

    hooks: Hooks

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the hooks follow from."""
        return self.hooks.identity

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it; what is compiled is compiled with the hooks on it."""
        if mode not in (BLOCKS, UNLIMITED):
            return self.hooks.build(bench, EAGER if mode == STOCK else mode)
        entrant = self.hooks.build(bench, EAGER)
        driven: Any = entrant.module
        if mode == UNLIMITED:
            driven.inner = bench.compile(driven.model, recompile_limit=LIMIT)
        else:
            driven.model._repeated_blocks = list(REPEATED)
            driven.model.compile_repeated_blocks()
        return entrant


def freezing() -> AbstractContextManager[object]:
    """What is compiled inside owns its weights."""
    patched: AbstractContextManager[object] = config.patch(freezing=True)
    return patched
