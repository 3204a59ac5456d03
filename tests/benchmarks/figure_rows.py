"""Rows of an ablation that has not been run."""

import math

from benchmarks.ablation.rows import Row
from benchmarks.quality.panel import Quality
from tests.benchmarks.ablation_runs import MACHINE, RUN


def make_row(name, *, psnr_db=33.0, **values):
    plain = {
        "steps": 50,
        "keep": "output",
        "cache": "fp16",
        "reuse_ratio": 0.5,
        "speed_median": 1.2,
        "speed_min": 1.1,
        "speed_max": 1.3,
        "ceiling": 1.25,
        "repeats": 5,
        "quality": Quality(psnr_db=psnr_db),
        "run": RUN,
        "machine": MACHINE,
    }
    return Row(name, **plain | values)


BASELINE = make_row(
    "baseline", keep=None, speed_median=1.0, speed_min=1.0, speed_max=1.0, psnr_db=math.inf
)
