"""Which sites take part: by kind, or by a pattern over module paths."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dqar_fx.errors import SiteError, listing
from dqar_fx.passes import find_around
from dqar_fx.passes.site_kinds import SITE_KINDS, group_kinds
from dqar_fx.passes.support.module_sites import numbered
from dqar_fx.program.explanation import spell_misses

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
            such as ``"transformer_blocks.1:11"`` or ``"down_blocks.1:up_blocks.3"``, or
            several of these. ``"span"`` means spans that are in no other one.
        kinds: The kinds that there are.

    Raises:
        SiteError: The graph has no site, or a pattern selects none.
    """
    if not matches:
        raise SiteError(
            "no attention was found in the graph, so nothing can be reused. Expected "
            "scaled_dot_product_attention, or matmul, softmax, matmul, inside a module of its "
            f"own; near misses:{listing(spell_misses(near_misses))}"
        )
    groups = group_kinds(kinds)
    inner = find_inner_spans(matches)

    def selects(pattern: str, site: Site) -> bool:
        """Whether a kind, a group of kinds or a path pattern means this site."""
        names = groups.get(pattern, (pattern,))
        is_of_kind = site.kind in names and site.index not in inner
        return is_of_kind or fnmatchcase(site.path, pattern)

    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not any(selects(pattern, match.site) for match in matches):
            names = (*groups, *(kind.name for kind in kinds))
            near = explain_misses(pattern, near_misses)
            raise SiteError(
                f"sites={pattern!r} selects no site{near}. Use one of {names}, or a path "
                f"pattern; the sites are:{listing([m.site for m in matches])}"
            )
    chosen = [m for m in matches if any(selects(pattern, m.site) for pattern in patterns)]
    return numbered(chosen)


def find_inner_spans(matches: Sequence[Match]) -> frozenset[int]:
    """Spans inside of another: the name of the kind means those around, a path any."""
    spans = [match for match in matches if match.site.kind == "span"]
    pairs = zip(spans, find_around(spans), strict=True)
    return frozenset(match.site.index for match, around in pairs if around)


def explain_misses(pattern: str, near_misses: Sequence[NoMatch]) -> str:
    """Why nothing is a block or a span, for the error; empty for other patterns."""
    kind = "span" if ":" in pattern else pattern
    misses = [miss for miss in near_misses if miss.kind == kind]
    named = [miss for miss in misses if miss.reason.startswith(f"{pattern}:")]
    if not misses:
        return ""
    return (
        f". What comes near:{listing(spell_misses(named or misses))}\n"
        "A block or a span is what is added to its input; a part of the model from one module "
        "to before another, such as 'down_blocks.1:up_blocks.3', may be anything that skip "
        "connections pass by. Reuse what is inside with sites='attention' or 'all'"
    )
