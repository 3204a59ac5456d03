"""``python -m benchmarks.scale``: growth of capture, passes and table."""

import sys

from benchmarks.scale.job import main

sys.exit(main())
