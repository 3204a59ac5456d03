"""What a step and a trajectory cost, counted and predicted before anything is compiled."""

from .measure_profile import measure_profile
from .profile import DATASHEETS, DeviceProfile
from .report import Report, RowReport, compare

__all__ = [
    "DATASHEETS",
    "DeviceProfile",
    "Report",
    "RowReport",
    "compare",
    "measure_profile",
]
