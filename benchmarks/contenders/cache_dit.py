"""cache-dit: DBCache, step masks and its TaylorSeer calibrator, with its adapter for DiT.

Its transformer-only interface is used: with a pipeline, it would change the class that all
contenders' pictures come from. Source: cache-dit 1.5.3, caching/*.py; docs/user_guide.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from benchmarks.contenders.bench import Bench
from benchmarks.contenders.contenders import Entrant
from benchmarks.contenders.kinds import BLOCKS, COMPILED
from benchmarks.harness.errors import InputError

RECOMPILES = 1024
"""Its documentation's limit, from ``cache_dit.set_compile_configs``."""


@dataclass(frozen=True)
class CacheDit:
    """A model with cache-dit.

    Attributes:
        config: Keywords of ``DBCacheConfig``.
        order: Of the TaylorSeer calibrator; 0 for none.
        mask: Name of a step mask, or the distance of computed steps in one; None for none.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    order: int = 0
    mask: str | int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What its pictures follow from."""
        return {"cache_dit": dict(self.config), "order": self.order, "mask": self.mask}

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it; what is compiled is compiled with the cache on it.

        Raises:
            InputError: cache-dit is not installed.
        """
        cache_dit, model = load_cache_dit(), bench.clone()
        config = dict(self.config)
        if self.mask is not None:
            steps_mask = make_mask(self.mask, bench.steps)
            config |= {
                "steps_computation_mask": steps_mask,
                "steps_computation_policy": "static",
            }
        cache_dit.enable_cache(
            model,
            cache_config=cache_dit.DBCacheConfig(
                num_inference_steps=bench.steps, enable_separate_cfg=False, **config
            ),
            calibrator_config=(
                cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.order)
                if self.order
                else None
            ),
        )
        inner: nn.Module = model
        if mode == COMPILED:  # as the documentation says
            inner = bench.compile(model, recompile_limit=RECOMPILES)
        elif mode == BLOCKS:
            for block in model.transformer_blocks:  # type: ignore[union-attr]
                block.compile()  # plain blocks: they may share graphs with each other
        return Entrant(inner, partial(refreshed, model, bench.steps))


@contextmanager
def refreshed(model: nn.Module, num_steps: int) -> Iterator[None]:
    """For one trajectory, with a cache context of its own."""
    load_cache_dit().refresh_context(model, num_inference_steps=num_steps)
    yield


def make_mask(mask: str | int, num_steps: int) -> list[int]:
    """A step mask of cache-dit by its name, or computing at each so-manieth step."""
    if isinstance(mask, int):
        return [int(step % mask == 0) for step in range(num_steps)]
    made: list[int] = load_cache_dit().steps_mask(mask_policy=mask, total_steps=num_steps)
    return made


def load_cache_dit() -> Any:
    """The package, which logs errors only.

    Raises:
        InputError: It is not installed.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # read when it is imported
    try:
        import cache_dit
    except ImportError as error:
        raise InputError(
            f'cache-dit needs the extra "peers": pip install "dqar_fx[peers]" ({error})'
        ) from error
    return cache_dit
