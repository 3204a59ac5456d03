"""The kinds of sites: what may be reused, one entry each.

A kind is one entry of `SITE_KINDS` and the pass that finds it; the argument ``sites=`` of
``transform`` and the command, `find_sites` and `choose_sites` read this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .find_attention import find_attention
from .find_feed_forward import find_feed_forward
from .find_residuals import find_residuals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .support.module_sites import Match
    from .support.vocabulary import NoMatch


@dataclass(frozen=True)
class SiteKind:
    """A kind of site.

    Attributes:
        name: What sites of this kind have as their ``kind``.
        find: The pass that finds them, maybe with other kinds: it takes a graph and gives
            the matches in execution order, and a reason for each candidate that is none.
        meaning: What such a site is, in words for users.
        groups: Names that stand for this kind and others.
        reads_paths: Whether ``find`` takes the paths that a user asked for, as ``spans``.
    """

    name: str
    find: Callable[..., tuple[list[Match], list[NoMatch]]]
    meaning: str
    groups: tuple[str, ...] = ()
    reads_paths: bool = False


SITE_KINDS = (
    SiteKind("self", find_attention, "self attention", ("attention", "all")),
    SiteKind("cross", find_attention, "attention to other tokens", ("attention", "all")),
    SiteKind("joint", find_attention, "attention of two joined streams", ("attention", "all")),
    SiteKind("feed_forward", find_feed_forward, "linear, activation, linear", ("all",)),
    SiteKind("block", find_residuals, "what a block adds to its input", reads_paths=True),
    SiteKind("span", find_residuals, "what several blocks add to it", reads_paths=True),
)


def group_kinds(kinds: Iterable[SiteKind] = SITE_KINDS) -> dict[str, tuple[str, ...]]:
    """The names of kinds that each group stands for; groups in order of first mention."""
    groups: dict[str, tuple[str, ...]] = {}
    for kind in kinds:
        for group in kind.groups:
            groups[group] = (*groups.get(group, ()), kind.name)
    return groups
