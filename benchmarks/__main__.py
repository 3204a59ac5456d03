"""``python -m benchmarks``: the main job."""

import sys

from benchmarks.main_job.job import main

sys.exit(main())
