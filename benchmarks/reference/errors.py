"""How the scripts of the reference pipeline end when what they read is missing or unusable."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness.errors import InputError


@contextmanager
def report_input_errors() -> Iterator[None]:
    """End the process with the message alone: a traceback would not help whoever reads it."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
