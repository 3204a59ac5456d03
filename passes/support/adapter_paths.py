"""What weights and scales of adapters are called in a captured graph."""

from __future__ import annotations

ADAPTER, SCALE = "adapter_", "scale_of_"


def adapter_name(place: int) -> str:
    """The name of the adapter at a place among those that are active."""
    return f"{ADAPTER}{place}"


def scale_name(place: int) -> str:
    """The name of the buffer with its scale, in each of its layers."""
    return f"{SCALE}{adapter_name(place)}"


def is_of_adapter(path: str) -> bool:
    """Whether a path is that of a weight or scale of an adapter, which may be another soon."""
    names = path.split(".")
    return any(name.startswith((ADAPTER, f"{SCALE}{ADAPTER}")) for name in names)
