"""What tells a stream from all others of a denoiser."""

from __future__ import annotations

StreamKey = tuple["str | None", int] | tuple["str | None", int, int]
"""Name from ``cache_context`` (or None), number among those of that name, number of the
session where one is open."""


def session_of(stream: StreamKey) -> int | None:
    """The number of the session that a stream is of; None if it has none."""
    return stream[2] if len(stream) == 3 else None
