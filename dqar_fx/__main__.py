"""``python -m dqar_fx``: the same as the command ``dqar-fx``."""

import sys

from .command_line import main

if __name__ == "__main__":
    sys.exit(main())
