"""``python -m benchmarks.figures``: the figures."""

import sys

try:
    from benchmarks.figures.job import main
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in ("matplotlib", "networkx"):
        raise
    sys.exit(f'error: {package} is not installed: pip install -e ".[figures]"')

sys.exit(main())
