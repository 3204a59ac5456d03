"""``python -m benchmarks.compile_cost``: cold and warm compilation, in processes apart."""

import sys

from benchmarks.compile_cost.job import main

sys.exit(main())
