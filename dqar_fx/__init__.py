"""Attention reuse for diffusion transformers, done by a compiler.

`transform` turns a denoiser and a `Schedule` into a `Denoiser` that reuses attention outputs
across denoising steps, as a static `BranchTable` says.

Loggers ``dqar_fx.capture`` and ``dqar_fx.program`` say what was captured and lowered (INFO),
``dqar_fx.passes`` what each pass did (DEBUG); all are silent unless set up. The environment
variable ``DQAR_FX_DUMP=folder`` writes every graph to files, see `dqar_fx.builder.dumps`.
"""

import logging

from . import prior_art
from .calibration.calibrate import calibrate
from .calibration.calibration import Calibration
from .calibration.policy import Policy
from .costs import DeviceProfile, Report, compare, measure_profile
from .costs.memory import MemoryPlan
from .denoiser.denoiser import Denoiser
from .errors import (
    CaptureError,
    DqarError,
    ForecastNoiseWarning,
    OptionError,
    ScheduleError,
    SiteError,
    StepError,
)
from .guidance.guidance import Guidance
from .inspect import GraphDiff, graph_diff
from .optimiser import (
    FittedSolver,
    Front,
    Optimum,
    Teacher,
    fit_forecasts,
    fit_solver,
    optimise,
)
from .passes import Site
from .pipeline.enable import disable, enable, enabled
from .pipeline.summary import Summary, summary
from .schedule.action import Action
from .schedule.gates import entropy_gate, policy_gate, snr_gate
from .schedule.noise import signal_to_noise
from .schedule.schedule import Schedule
from .schedule.table import BranchTable
from .solver.multistep_scheduler import MultistepScheduler
from .transform import transform

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent by default

__all__ = [
    "Action",
    "BranchTable",
    "Calibration",
    "CaptureError",
    "Denoiser",
    "DeviceProfile",
    "DqarError",
    "FittedSolver",
    "ForecastNoiseWarning",
    "Front",
    "GraphDiff",
    "Guidance",
    "MemoryPlan",
    "MultistepScheduler",
    "Optimum",
    "OptionError",
    "Policy",
    "Report",
    "Schedule",
    "ScheduleError",
    "Site",
    "SiteError",
    "StepError",
    "Summary",
    "Teacher",
    "calibrate",
    "compare",
    "disable",
    "enable",
    "enabled",
    "entropy_gate",
    "fit_forecasts",
    "fit_solver",
    "graph_diff",
    "measure_profile",
    "optimise",
    "policy_gate",
    "prior_art",
    "signal_to_noise",
    "snr_gate",
    "summary",
    "transform",
]
