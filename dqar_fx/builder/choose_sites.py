"""Which sites take part: by kind, or by a pattern over module paths."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dqar_fx.errors import SiteError, listing
from dqar_fx.passes.site_kinds import SITE_KINDS, group_kinds
from dqar_fx.passes.support.module_sites import numbered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.passes import NoMatch, Site, SiteKind
    from dqar_fx.passes.support.module_sites import Match


def choose_sites(
    matches: Sequence[Match],
    near_misses: Sequence[NoMatch],
    wanted: str | Sequence[str],
    kinds: Sequence[SiteKind] = SITE_KINDS,
) -> list[Match]:
    """The matches that take part, numbered anew in execution order.

    Args:
        matches: All sites of the graph.
        near_misses: Candidates that are none, for the error.
        wanted: A kind, a group of kinds, a path pattern as of a shell, the path of a span
            such as ``"transformer_blocks.1:11"``, or several of these.
        kinds: The kinds that there are.

    Raises:
        SiteError: The graph has no site, or a pattern selects none.
    """
    if not matches:
        raise SiteError(
            "no attention was found in the graph, so nothing can be reused. Expected "
            "scaled_dot_product_attention, or matmul, softmax, matmul, inside a module of its "
            f"own; near misses:{listing(near_misses)}"
        )
    groups = group_kinds(kinds)

    def selects(pattern: str, site: Site) -> bool:
        """Whether a kind, a group of kinds or a path pattern means this site."""
        names = groups.get(pattern, (pattern,))
        return site.kind in names or fnmatchcase(site.path, pattern)

    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not any(selects(pattern, match.site) for match in matches):
            names = (*groups, *(kind.name for kind in kinds))
            raise SiteError(
                f"sites={pattern!r} selects no site. Use one of {names}, or a "
                f"path pattern; the sites are:{listing([m.site for m in matches])}"
            )
    chosen = [m for m in matches if any(selects(pattern, m.site) for pattern in patterns)]
    return numbered(chosen)
