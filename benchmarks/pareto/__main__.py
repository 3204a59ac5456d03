"""``python -m benchmarks.pareto``: quality against measured time."""

import sys

from benchmarks.pareto.job import main

sys.exit(main())
