"""What other systems do, as schedules: their rule, or their file, becomes a branch table.

Each system has a file of its own. Each function returns a schedule whose table computes and
reuses at the same steps as that system, together with the sites that it is meant for. Where
the system does something that no table can say (another norm, a test at run time), the
function's docstring says so.
"""

from .budcache import read_budcache
from .cache_dit import step_mask
from .fora import fora
from .invardiff import read_invardiff
from .l2p import read_l2p
from .learning_to_cache import read_learning_to_cache
from .magcache import magcache
from .smoothcache import read_smoothcache, smoothcache
from .taylorseer import taylorseer

__all__ = [
    "fora",
    "magcache",
    "read_budcache",
    "read_invardiff",
    "read_l2p",
    "read_learning_to_cache",
    "read_smoothcache",
    "smoothcache",
    "step_mask",
    "taylorseer",
]
