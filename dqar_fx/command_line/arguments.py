"""A parser whose errors are one line, and converters for its options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with code 2."""
        self.exit(2, f"error: {message}\n")


def at_least(minimum: int) -> Callable[[str], int]:
    """A converter for argparse: an integer that is not below ``minimum``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {minimum}, found {text!r}"
            )
        return value

    return convert


def pair_of_steps(text: str) -> tuple[int, int]:
    """A converter for argparse: ``4:17``, two steps."""
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected two steps such as 4:17, found {text!r}")
    return int(first), int(second)


def steps_of(text: str) -> tuple[int, ...]:
    """A converter for argparse: ``17``, a step, or ``4:17``, two."""
    if text.isdecimal():
        return (int(text),)
    try:
        return pair_of_steps(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a step such as 17, or two such as 4:17, found {text!r}"
        ) from None


def cell_of(text: str) -> tuple[int, int | str]:
    """A converter for argparse: ``21:3`` or ``21:path``, a step and a site."""
    step, _, site = text.partition(":")
    if not step.isdecimal() or not site:
        raise argparse.ArgumentTypeError(
            "expected a step and a site such as 21:3 or 21:transformer_blocks.3.attn1, "
            f"found {text!r}"
        )
    return int(step), int(site) if site.isdecimal() else site


def sites_of(text: str) -> str | tuple[str, ...]:
    """A converter for argparse: a kind or pattern of sites, or several with commas between."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise argparse.ArgumentTypeError(f"expected a kind or path of sites, found {text!r}")
    return parts[0] if len(parts) == 1 else parts


def size_of(text: str) -> int | tuple[int, int]:
    """A converter for argparse: ``64``, one side of a square, or ``60x104``."""
    sides = [int(side) for side in text.split("x") if side.isdecimal() and int(side) > 1]
    if len(sides) != text.count("x") + 1 or len(sides) > 2:
        raise argparse.ArgumentTypeError(
            f"expected a side of at least 2, or two such as 60x104, found {text!r}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
