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
from benchmarks.gates.calibrated import CalibratedOptions
from benchmarks.harness.options import (
    at_least,
    convert_with,
    one_of,
    quick_flag,
    several,
)

FIGURES = ("speed", "reuse", "quality", "architecture", "mismatch")
QUICK = {"steps": 6, "samples": 1}


@dataclass(frozen=True)
class Options(CalibratedOptions):
    """Options of the figures."""

    COMMAND = "benchmarks.figures"
    QUICK = QUICK

    scheduler: Annotated[str, one_of(SCHEDULERS)] = "ddpm"
    """DDPM, as in the ablation, or the pipeline's own."""
    steps: Annotated[int, at_least(4)] = 50
    """Denoising steps."""
    seed: Annotated[int, at_least(0)] = 42
    """Of the first picture; the others follow."""
    ablation: Annotated[Path, convert_with(Path, "FOLDER")] = Path("results/ablation")
    """Rows of the ablation."""
    only: Annotated[tuple[str, ...], several(one_of(FIGURES), "NAME")] = FIGURES
    """Names of the figures to draw."""
    out: Path = Path("results/figures")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False
