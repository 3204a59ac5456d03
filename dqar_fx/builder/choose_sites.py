"""Which sites take part: by kind, or by a pattern over module paths."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dqar_fx.errors import SiteError, listing
from dqar_fx.passes.support.module_sites import numbered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.passes import NoMatch
    from dqar_fx.passes.support.module_sites import Match

ATTENTION = ("self", "cross", "joint")
GROUPS = {"attention": ATTENTION, "all": (*ATTENTION, "feed_forward")}
"""Names that stand for several kinds."""
KINDS = (*GROUPS["all"], "block", "span")


def choose_sites(
    matches: Sequence[Match], near_misses: Sequence[NoMatch], wanted: str | Sequence[str]
) -> list[Match]:
    """The matches that take part, numbered anew in execution order.

    Args:
        matches: All sites of the graph.
        near_misses: Candidates that are none, for the error.
        wanted: ``"attention"``, ``"all"``, a kind, a path pattern as of a shell, the path of
            a span such as ``"transformer_blocks.1:11"``, or several of these.

    Raises:
        SiteError: The graph has no site, or a pattern selects none.
    """
    if not matches:
        raise SiteError(
            "no attention was found in the graph, so nothing can be reused. Expected "
            "scaled_dot_product_attention, or matmul, softmax, matmul, inside a module of its "
            f"own; near misses:{listing(near_misses)}"
        )
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not any(selects(pattern, match) for match in matches):
            raise SiteError(
                f"sites={pattern!r} selects no site. Use one of {(*GROUPS, *KINDS)}, or a "
                f"path pattern; the sites are:{listing([m.site for m in matches])}"
            )
    chosen = [m for m in matches if any(selects(pattern, m) for pattern in patterns)]
    return numbered(chosen)


def selects(pattern: str, match: Match) -> bool:
    """Whether a kind or path pattern means this site."""
    site = match.site
    kinds = GROUPS.get(pattern, (pattern,))
    return site.kind in kinds or fnmatchcase(site.path, pattern)
