"""The one error of the reference scripts: what was read from disk is missing or unusable."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A file or folder is missing, damaged or of another run; the text says what to do."""


@contextmanager
def report_input_errors() -> Iterator[None]:
    """End the process with the message alone: a traceback would not help whoever reads it."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
