"""``dqar-fx``: parse, do, and say in one line what went wrong."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from dqar_fx.errors import DqarError

from .options import build_parser

if TYPE_CHECKING:
    from collections.abc import Sequence

CODE_OF_ERROR = 2
CODE_OF_CLOSED_PIPE = 141
"""128 + SIGPIPE: what a shell reports of a program whose reader has gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments; None for those of the process.

    Returns:
        The exit code: 0; 1 of ``diff --exit-code`` where something differs; 2 for an error.
    """
    options = build_parser().parse_args(argv)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes at its end, and must not meet the closed pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CODE_OF_CLOSED_PIPE
    except (DqarError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return CODE_OF_ERROR
    return code
