"""What the compiler found and did, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .sites import listing

if TYPE_CHECKING:
    from dqar_fx.passes import NoMatch, Site

    from .runner import PassReport


@dataclass(frozen=True)
class Explanation:
    """Sites, near misses and passes of one captured graph.

    Attributes:
        sites: The sites that take part.
        left_out: Sites that were found but not selected, apart from blocks and spans.
        near_misses: Attention-like nodes that are no site, with the reason.
        reports: What each pass did, in order.
    """

    sites: tuple[Site, ...]
    left_out: tuple[Site, ...]
    near_misses: tuple[NoMatch, ...]
    reports: tuple[PassReport, ...]

    def __str__(self) -> str:
        sites = [f"{site}  ({site.source})" for site in self.sites]
        return (
            f"{len(self.sites)} sites:{listing(sites)}\n"
            f"{len(self.left_out)} sites left out:{listing(self.left_out)}\n"
            f"{len(self.near_misses)} near misses:{listing(self.near_misses)}\n"
            f"passes:{listing(self.reports)}"
        )
