"""Attention reuse for diffusion transformers, done by a compiler.

`transform` turns a denoiser and a `Schedule` into a `Denoiser` that reuses attention outputs
across denoising steps, as a static `BranchTable` says.
"""

from .denoiser import Denoiser
from .errors import (
    CaptureError,
    DqarError,
    FormatError,
    ScheduleError,
    SiteError,
    StepError,
)
from .passes import Action, Site
from .schedule import Schedule
from .table import BranchTable
from .transform import transform

__all__ = [
    "Action",
    "BranchTable",
    "CaptureError",
    "Denoiser",
    "DqarError",
    "FormatError",
    "Schedule",
    "ScheduleError",
    "Site",
    "SiteError",
    "StepError",
    "transform",
]
