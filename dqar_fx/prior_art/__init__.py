"""What other systems do, as schedules: their rule, or their file, becomes a branch table.

Each function gives a schedule whose table computes and reuses at the same steps as that
system, together with the sites that it is meant for. Where the other system does something
that no table says (another norm, a test at run time), its function says so.
"""

from .blocks import magcache, step_mask
from .files import read_learning_to_cache, read_smoothcache
from .layers import fora, smoothcache, taylorseer

__all__ = [
    "fora",
    "magcache",
    "read_learning_to_cache",
    "read_smoothcache",
    "smoothcache",
    "step_mask",
    "taylorseer",
]
