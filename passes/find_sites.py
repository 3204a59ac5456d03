"""Find all that may be reused, of every kind, in execution order.

Each pass of the table `SITE_KINDS` is asked once. Nothing is edited: matches are returned.

Legal because each of these passes is; that sites may contain each other is the business of
`insert_guards` and of the branch table, which `find_around` tells what contains what:

    %linear_3, %linear_5, %y : f32[2, 36, 60]
 -> 0  transformer_blocks.0.attn1  self, fused, keeps [2, 36, 60]
    1  transformer_blocks.0.ff  feed_forward, gelu, keeps [2, 36, 60]
    2  transformer_blocks.0  block, residual, keeps [2, 36, 60]

Leaves alone: what no kind knows.

Source: the passes in the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .site_kinds import SITE_KINDS
from .support.module_sites import numbered

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import fx

    from .site_kinds import SiteKind
    from .support.module_sites import Match
    from .support.vocabulary import NoMatch


def find_sites(
    gm: fx.GraphModule,
    spans: Sequence[str] = (),
    *,
    kinds: Sequence[SiteKind] = SITE_KINDS,
    disable: Collection[str] = (),
) -> tuple[list[Match], list[NoMatch]]:
    """The sites of all kinds, and a reason for each candidate that is none.

    Args:
        gm: The graph.
        spans: Paths of spans to find beside those of all blocks of a module list.
        kinds: What to look for.
        disable: Names of passes that are not asked.
    """
    matches: list[Match] = []
    near_misses: list[NoMatch] = []
    finders = {kind.find: kind.reads_paths for kind in kinds}
    for find, reads_paths in finders.items():
        if find.__name__ not in disable:
            found, misses = find(gm, spans) if reads_paths else find(gm)
            matches += found
            near_misses += misses
    place = {node: number for number, node in enumerate(gm.graph.nodes)}
    matches.sort(key=lambda match: (place[match.body[-1]], len(match.body)))
    return numbered(matches), near_misses


def find_around(matches: Sequence[Match]) -> tuple[tuple[int, ...], ...]:
    """Find, per match, the places of those that contain it: what they read covers it."""
    bodies = [frozenset(match.body) for match in matches]
    return tuple(
        tuple(
            other
            for other, match in enumerate(matches)
            if match.bases and other != place and body <= bodies[other]
        )
        for place, body in enumerate(bodies)
    )
