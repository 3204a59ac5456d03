"""Draw the figures of the DQAR report from what is measured here.

They are written as PNG and SVG, with a page of captions. The bars of speed need the rows that
python -m benchmarks.ablation writes; everything else is measured by this command, in eager
mode.

Examples::

    python -m benchmarks.figures                              # all of them
    python -m benchmarks.figures --only speed                 # draw one again
    python -m benchmarks.figures --calibration my-calibration # keep what takes longest
    python -m benchmarks.figures --quick --out results/quick  # does it run at all?
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from benchmarks.ablation.options import SCHEDULERS
from benchmarks.harness.options import (
    Count,
    at_least,
    convert_with,
    default_is,
    folder_to_keep,
    one_of,
    quick_flag,
    several,
)
from benchmarks.harness.pipelines import PipelineOptions

FIGURES = ("speed", "reuse", "quality", "architecture", "mismatch")
QUICK = {"steps": 6, "samples": 1}


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of the figures."""

    COMMAND = "benchmarks.figures"
    QUICK = QUICK

    scheduler: Annotated[str, one_of(SCHEDULERS)] = "ddpm"
    """DDPM, as in the ablation, or the pipeline's own."""
    steps: Annotated[int, at_least(4)] = 50
    """Denoising steps."""
    labels: Annotated[
        tuple[int, ...] | None,
        several(at_least(0), "N"),
        default_is("the first ones of the pipeline"),
    ] = None
    """Classes of the pictures."""
    samples: Count = 8
    """How many classes, without these."""
    seed: Annotated[int, at_least(0)] = 42
    """Of the first picture; the others follow."""
    calibration: Annotated[
        Path | None, convert_with(folder_to_keep, "FOLDER"), default_is("measure anew")
    ] = None
    """Read a calibration there, or write it there."""
    ablation: Annotated[Path, convert_with(Path, "FOLDER")] = Path("results/ablation")
    """Rows of the ablation."""
    only: Annotated[tuple[str, ...], several(one_of(FIGURES), "NAME")] = FIGURES
    """Names of the figures to draw."""
    out: Path = Path("results/figures")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False
