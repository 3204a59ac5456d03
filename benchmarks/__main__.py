"""``python -m benchmarks``: the main job."""

import sys

from benchmarks.main_job import main

sys.exit(main())
