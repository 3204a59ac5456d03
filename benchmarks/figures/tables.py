"""The branch tables that the figure of reuse shows."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures.studio import Studio
from benchmarks.gates.lineup import ENTROPY, MAX_AGE, POLICY, SNR, list_families
from benchmarks.harness.contenders import WARMUP
from dqar_fx import BranchTable, Policy, Schedule

LINEAR, AGED, INTERVAL = "linear", f"linear, max_age={MAX_AGE}", "interval every=2"
GATES = (SNR, ENTROPY, POLICY)
RULES = {
    LINEAR: "reuse spreads from shallow to deep sites",
    AGED: f"the same; nothing that is reused is over {MAX_AGE} steps old",
    INTERVAL: "computes at each second step",
    SNR: f"reuses once noise has fallen; at most {MAX_AGE} steps old",
    ENTROPY: f"reuses where attention is broad; at most {MAX_AGE} steps old",
    POLICY: "reuses where a small network predicts little error",
}
"""What each does, in words."""
TARGET = 0.5
"""Share of cells that the gates are set to reuse."""


def list_tables(studio: Studio) -> dict[str, BranchTable]:
    """The branch tables by name; the report's schedule first."""
    steps, sites = studio.options.steps, studio.denoiser.table.sites
    policy = Policy.fit(studio.calibration)
    families = list_families(studio.pipe.scheduler, studio.calibration, policy)
    return {
        **{name: each.resolve(sites) for name, each in list_schedules(steps).items()},
        **{name: families[name].settle(sites, TARGET).table for name in GATES},
    }


def list_schedules(steps: int) -> dict[str, Schedule]:
    """Those that follow the step alone; the report's first."""
    return {
        LINEAR: Schedule.linear(steps, WARMUP),
        AGED: Schedule.linear(steps, WARMUP, max_age=MAX_AGE),
        INTERVAL: Schedule.interval(steps, 2, warmup=WARMUP),
    }


def share_of_reuse(table: BranchTable) -> NDArray[np.float64]:
    """Per step, the share of sites that reuse, in [0, 1]."""
    return np.asarray(table.is_read.mean(axis=1))
