"""Cards: the geometry of published models, by names such as ``flux.1-dev``.

A card has the config of a model and the sizes of one call of its pipeline, but no weights, so
that a model can be inspected where neither it nor its hub is at hand.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path(__file__).with_name("cards.toml")


@dataclass(frozen=True)
class Card:
    """The geometry of one model.

    Attributes:
        config: What a config file of the model would have.
        billions: Parameters that are published, in billions.
        size: Height and width of the latent; None for the config's.
        frames: Frames of the latent; None where it has none.
        text_tokens: Tokens of text; None for those of other pipelines of the class.
    """

    config: Mapping[str, Any]
    billions: float
    size: tuple[int, int] | None = None
    frames: int | None = None
    text_tokens: int | None = None


@cache
def read_cards() -> dict[str, Card]:
    """All cards, by name."""
    table = tomllib.loads(FILE.read_text("utf-8"))
    return {name: read_card(entry) for name, entry in table.items()}


def read_card(entry: Mapping[str, Any]) -> Card:
    """One entry of the file."""
    sizes = dict(entry.get("sizes", {}))
    if "size" in sizes:
        sizes["size"] = tuple(sizes["size"])
    config = {"_class_name": entry["class"], **entry["config"]}
    return Card(config, entry["billions"], **sizes)


def find_card_maybe(source: str) -> Card | None:
    """The card of a name; None if it is the name of something else."""
    return None if Path(source).exists() else read_cards().get(source)
