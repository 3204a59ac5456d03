"""All that may be reused, of every kind, in execution order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .find_attention import find_attention
from .find_feed_forward import find_feed_forward
from .module_sites import numbered

if TYPE_CHECKING:
    from torch import fx

    from .module_sites import Match
    from .vocabulary import NoMatch

FINDERS = (
    find_attention,
    find_feed_forward,
)


def find_sites(gm: fx.GraphModule) -> tuple[list[Match], list[NoMatch]]:
    """The sites of all kinds, and a reason for each candidate that is none."""
    found = [finder(gm) for finder in FINDERS]
    place = {node: number for number, node in enumerate(gm.graph.nodes)}
    matches = [match for matches, _ in found for match in matches]
    matches.sort(key=lambda match: place[match.body[-1]])
    return numbered(matches), [miss for _, misses in found for miss in misses]
