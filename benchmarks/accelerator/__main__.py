"""``python -m benchmarks.accelerator``: every claim about accelerators."""

import sys

from benchmarks.accelerator.job import main

sys.exit(main())
