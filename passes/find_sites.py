"""All that may be reused, of every kind, in execution order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .find_attention import find_attention
from .find_feed_forward import find_feed_forward
from .find_residuals import find_residuals
from .support.module_sites import numbered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from .support.module_sites import Match
    from .support.vocabulary import NoMatch


def find_sites(
    gm: fx.GraphModule, spans: Sequence[str] = ()
) -> tuple[list[Match], list[NoMatch]]:
    """The sites of all kinds, and a reason for each candidate that is none.

    Args:
        gm: The graph.
        spans: Paths of spans to find beside those of all blocks of a module list.
    """
    found = (find_attention(gm), find_feed_forward(gm), find_residuals(gm, spans))
    place = {node: number for number, node in enumerate(gm.graph.nodes)}
    matches = [match for matches, _ in found for match in matches]
    matches.sort(key=lambda match: (place[match.body[-1]], len(match.body)))
    return numbered(matches), [miss for _, misses in found for miss in misses]


def find_around(matches: Sequence[Match]) -> tuple[tuple[int, ...], ...]:
    """Per match, the places of those that contain it: what they read covers it."""
    bodies = [frozenset(match.body) for match in matches]
    return tuple(
        tuple(
            other
            for other, match in enumerate(matches)
            if match.bases and other != place and body <= bodies[other]
        )
        for place, body in enumerate(bodies)
    )
