"""``python -m benchmarks.ablation``: the report's ablation."""

import sys

from benchmarks.ablation.job import main

sys.exit(main())
