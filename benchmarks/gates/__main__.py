"""``python -m benchmarks.gates``: the comparison of gates."""

import sys

from benchmarks.gates.job import main

sys.exit(main())
