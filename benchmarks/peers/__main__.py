"""``python -m benchmarks.peers``: everybody who caches on a DiT, each in its own process."""

import sys

from benchmarks.peers.job import main

sys.exit(main())
