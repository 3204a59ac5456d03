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
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Self

import tyro

from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.machine import can_compile
from benchmarks.harness.options import (
    Flag,
    above,
    at_least,
    convert_with,
    default_is,
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
PIPELINE_DEFAULTS = {"steps": 50, "samples": 8, "repeats": 5, "images": 700}


@dataclass(frozen=True)
class Sized:
    """A geometry, and what is measured with it unless asked otherwise."""

    geometry: Geometry
    steps: int
    repeats: int

    @property
    def defaults(self) -> dict[str, int]:
        """Options that are not given."""
        return {"steps": self.steps, "samples": 1, "repeats": self.repeats, "images": 0}


GEOMETRIES = {
    "DiT-S/2": Sized(Geometry(12, 384, 6), steps=20, repeats=5),
    "DiT-XL/2": Sized(Geometry(28, 1152, 16), steps=12, repeats=3),
}
"""Numbers of steps that let tables of every second, third and fourth step end as at 50."""


def geometry_of(name: str) -> str:
    """A geometry's name.

    Raises:
        ValueError: There is no such geometry.
    """
    if name not in GEOMETRIES:
        raise ValueError(f"invalid choice {name!r}; choose from {', '.join(GEOMETRIES)}")
    return name


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of this command."""

    COMMAND = "benchmarks.peers"
    QUICK = QUICK

    geometry: Annotated[
        str | None,
        convert_with(geometry_of, f"{{{','.join(GEOMETRIES)}}}"),
        default_is("a pipeline"),
    ] = None
    """Random weights of this size, no pictures."""
    steps: Annotated[int | None, at_least(2), default_is("50; DiT-S/2: 20, DiT-XL/2: 12")] = (
        None
    )
    """Denoising steps."""
    guidance: Annotated[float, above(1)] = 1.5
    """Guidance scale, above 1."""
    samples: Annotated[int | None, at_least(1), default_is("8; of a geometry: 1")] = None
    """Pictures in a batch."""
    only: Annotated[
        tuple[str, ...], several(convert_with(str, "PATTERN")), default_is("all")
    ] = ()
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
        defaults, name = PIPELINE_DEFAULTS, self.geometry
        if name is not None:
            known = {field.name: field.default for field in fields(self)}
            if self.model != known["model"]:
                raise InputError("--model and --geometry are two models: give one of them")
            if self.images:
                raise InputError(
                    f"--images {self.images}: --geometry {name} has random weights and no "
                    "VAE, so that there are no pictures to judge; its rows show the error of "
                    "the final latent"
                )
            settled = replace(settled, model=name)
            defaults = GEOMETRIES[name].defaults
        missing = {key: v for key, v in defaults.items() if getattr(self, key) is None}
        return replace(settled, **missing)
