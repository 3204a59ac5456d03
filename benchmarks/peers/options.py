"""Compare dqar_fx with what else caches on a DiT, on one model and the same seeds.

These take part: the model as it is, compiled, and with fewer steps of equal cost; the caches
of diffusers and cache-dit, eager and compiled; dqar_fx with the same branch tables, eager, by
regions and whole. Each row has a process of its own, where it takes turns with the compiled
untransformed model.

After an interruption the same command goes on where the run was. What failed is a row; it is
tried again with --retry.

Examples::

    python -m benchmarks.peers                                   # the reference pipeline
    python -m benchmarks.peers --only "*PAB range 2*" "*steps*"  # some rows
    python -m benchmarks.peers --geometry DiT-XL/2               # random weights, 12 steps
    python -m benchmarks.peers --report                          # what is on disk
    python -m benchmarks.peers --quick --out results/quick       # does it run at all?
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

import tyro

from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import can_compile
from benchmarks.harness.options import (
    Flag,
    Patterns,
    above,
    at_least,
    default_is,
    one_of,
    quick_flag,
    several,
)
from benchmarks.harness.pipelines import PipelineOptions

QUICK = {
    "steps": 6,
    "samples": 2,
    "repeats": 1,
    "images": 0,
    "fewer": (5,),
    "eager": True,
    "only": ("*PAB range 2, timesteps all*", "* steps, eager"),
}
GEOMETRIES = {"DiT-S/2": Geometry(12, 384, 6), "DiT-XL/2": Geometry(28, 1152, 16)}
DEFAULTS = {
    None: {"steps": 50, "samples": 8, "repeats": 5, "images": 700},
    "DiT-S/2": {"steps": 20, "samples": 1, "repeats": 5, "images": 0},
    "DiT-XL/2": {"steps": 12, "samples": 1, "repeats": 3, "images": 0},
}
"""Options that are not given, by geometry: numbers of steps that let tables of every second,
third and fourth step end as at 50."""


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of this command."""

    COMMAND = "benchmarks.peers"
    QUICK = QUICK

    geometry: Annotated[str | None, one_of(GEOMETRIES), default_is("a pipeline")] = None
    """Random weights of this size, no pictures."""
    steps: Annotated[int | None, at_least(2), default_is("50; DiT-S/2: 20, DiT-XL/2: 12")] = (
        None
    )
    """Denoising steps."""
    guidance: Annotated[float, above(1)] = 1.5
    """Guidance scale, above 1."""
    samples: Annotated[int | None, at_least(1), default_is("8; of a geometry: 1")] = None
    """Pictures in a batch."""
    only: Patterns = ("*",)
    """Rows of such names."""
    fewer: Annotated[
        tuple[int, ...] | None,
        several(at_least(1), "STEPS"),
        default_is("those of equal cost"),
    ] = None
    """Steps of the untransformed model."""
    eager: Flag = False
    """Compile nothing, not even the unit."""
    repeats: Annotated[int | None, at_least(1), default_is("5; DiT-XL/2: 3")] = None
    """Timed trajectories per row."""
    images: Annotated[int | None, at_least(0), default_is("700")] = None
    """Per row, for FD; 0 for none."""
    retry: Flag = False
    """Try again what failed."""
    report: Flag = False
    """Show what is on disk, measure nothing."""
    timeout_s: Annotated[float, above(0), tyro.conf.arg(name="timeout", metavar="SECONDS")] = (
        3600.0
    )
    """What one row's process may take."""
    out: Path = Path("results/peers")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False

    def settle(self) -> Self:
        """The same with what follows from the model, eager where there is no compiler."""
        settled = self.fill_in(super().settle())
        if self.fewer is not None and max(self.fewer) >= settled.steps:
            raise InputError(
                f"--fewer {max(self.fewer)} is not fewer than --steps {settled.steps}"
            )
        if settled.images == 1:
            raise InputError("--images 1 has no distribution: give 0, or 2 and more")
        eager = self.eager
        if not eager and not can_compile(settled.device):
            print("no C++ compiler was found: nothing is compiled", file=sys.stderr)
            eager = True
        fewer = None if self.fewer is None else tuple(dict.fromkeys(self.fewer))
        only = tuple(dict.fromkeys(self.only))
        return replace(settled, eager=eager, fewer=fewer, only=only)

    def fill_in(self, settled: Self) -> Self:
        """The defaults of a pipeline or a geometry, which the model is named after."""
        name = self.geometry
        if name is not None:
            if self.model != PipelineOptions.model:
                raise InputError("--model and --geometry are two models: give one of them")
            if self.images:
                raise InputError(
                    f"--images {self.images}: --geometry {name} has random weights and no "
                    "VAE, so that there are no pictures to judge; its rows show the error of "
                    "the final latent"
                )
            settled = replace(settled, model=name)
        defaults = DEFAULTS[name].items()
        return replace(
            settled, **{key: v for key, v in defaults if getattr(self, key) is None}
        )
