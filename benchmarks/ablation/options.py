"""Run the ablation of the DQAR report: baseline, scheduling_only, quant_cache_only, full_dqar.

Rivals of equal cost or equal reuse take part. Print one table of time, reuse, cache memory and
quality, and what becomes of the report's claims. Write both, and a grid of pictures.
After an interruption the same command goes on where the run was.

Examples::

    python -m benchmarks.ablation                                  # the reference pipeline
    python -m benchmarks.ablation --model facebook/DiT-XL-2-256 --device cuda --images 0
    python -m benchmarks.ablation --no-time --batch 50             # only the pictures
    python -m benchmarks.ablation --quick --out results/quick      # does it run at all?
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

import tyro

from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import can_compile
from benchmarks.harness.options import (
    Count,
    Flag,
    Lowering,
    at_least,
    convert_with,
    default_is,
    one_of,
    quick_flag,
    several,
)
from benchmarks.harness.pipelines import DTYPES, PipelineOptions

SCHEDULERS = ("ddpm", "keep")
QUICK = {
    "steps": 8,
    "samples": 2,
    "repeats": 1,
    "images": 6,
    "batch": 2,
    "lowering": "eager",
}


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of the ablation."""

    COMMAND = "benchmarks.ablation"
    QUICK = QUICK

    dtype: Annotated[
        str | None, one_of(tuple(DTYPES)), default_is("float16 on cuda, else float32")
    ] = None
    """Dtype of the parameters."""
    lowering: Lowering = "regional"
    """What is compiled."""
    scheduler: Annotated[str, one_of(SCHEDULERS)] = "ddpm"
    """DDPM, as in the report, or the pipeline's own."""
    steps: Annotated[int, at_least(2)] = 50
    """Denoising steps."""
    classes: Annotated[
        tuple[int, ...] | None, several(at_least(0), "N"), default_is("the report's")
    ] = None
    """Classes of the pictures, in turn."""
    guidance: float = 1.5
    """Guidance scale."""
    time: bool = True
    """Measure times."""
    samples: Count = 8
    """Pictures in the batch that is timed; the report has 4 to 8."""
    repeats: Count = 5
    """Timed trajectories per row."""
    budget_s: Annotated[float, tyro.conf.arg(name="budget", metavar="SECONDS")] = 420.0
    """Begin no further repeat after this, once there are three."""
    images: Annotated[int, at_least(0)] = 2100
    """Pictures per row that are judged; 0 for none."""
    seed_groups: Count = 3
    """Groups of seeds that these are spread over."""
    batch: Count = 100
    """Pictures in one batch of these."""
    metrics: Flag = False
    """Add LPIPS and CLIP score, for other pipelines (extra metrics)."""
    real: Annotated[Path | None, convert_with(Path, "FOLDER"), default_is("none")] = None
    """Real pictures to measure FID against, for other pipelines (extra metrics)."""
    more: Flag = False
    """Also compare at the table with max_age=3."""
    out: Path = Path("results/ablation")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False

    def settle(self) -> Self:
        """The same with a dtype, and eager where there is no compiler.

        Raises:
            InputError: The pictures cannot be spread over the groups.
        """
        if self.images % self.seed_groups:
            raise InputError(
                f"--images {self.images} is no multiple of --seed-groups {self.seed_groups}: "
                "each group needs as many pictures"
            )
        options = super().settle()
        dtype = "float16" if options.device.type == "cuda" else "float32"
        options = replace(options, dtype=options.dtype or dtype)
        if options.lowering == "eager" or can_compile(options.device):
            return options
        print("no C++ compiler was found: nothing is compiled", file=sys.stderr)
        return replace(options, lowering="eager")
