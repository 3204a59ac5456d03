"""What the compiler found and did, in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import listing
from dqar_fx.passes.support.graphs import source_line
from dqar_fx.passes.support.module_paths import module_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dqar_fx.passes import NoMatch, Site
    from dqar_fx.passes.support.runner import PassReport
    from dqar_fx.schedule.cells import SiteRow

TIERS = {
    "graph": "one graph of the whole denoiser",
    "graph by values": "one graph of the whole denoiser, for values that its forward reads",
    "blocks": "its blocks one by one, between which the model's own forward runs",
}
"""What a capture may be of, the best first, in words."""
AT_A_TIME = (
    "around a captured block as around the original's; those around modules inside of a block "
    "run around it, so that what it reads is there at once"
)
"""When hooks run that bring weights in."""


@dataclass(frozen=True)
class Explanation:
    """Sites, near misses, passes and actions of one captured graph.

    Attributes:
        sites: The sites that take part.
        left_out: Sites that were found but not selected, apart from blocks, and from spans
            other than the levels of a UNet.
        near_misses: Attention-like nodes that are no site, with the reason.
        reports: What each pass did, in order.
        rows: What each site does at each step, or at the one that was asked for.
        disabled: Names of passes that were left out.
        reads: Values that the forward reads on the host, by which the graph is specialised.
        tier: What was captured: an entry of `TIERS`.
        why_tier: Why not the one above it; empty where that was not tried.
        uncaptured: Reason by path, for blocks that run as themselves.
        offload: Who brings weights in, in words; empty where they stay.
    """

    sites: tuple[Site, ...]
    left_out: tuple[Site, ...]
    near_misses: tuple[NoMatch, ...]
    reports: tuple[PassReport, ...]
    rows: tuple[SiteRow, ...] = ()
    disabled: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    tier: str = "graph"
    why_tier: str = ""
    uncaptured: Mapping[str, str] = field(default_factory=dict)
    offload: str = ""

    @property
    def said_tier(self) -> str:
        """The tier in words, and why it is not the one above."""
        why = f", since {self.why_tier}" if self.why_tier else ""
        return f"{TIERS[self.tier]}{why}"

    def to_json(self) -> str:
        """Give the content of the JSON; sites and near misses of torch are in words."""
        return json.dumps(self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "sites": [describe_site(site) for site in self.sites],
            "left_out": [describe_site(site) for site in self.left_out],
            "near_misses": [describe_miss(miss) for miss in self.near_misses],
            "passes": [asdict(report) for report in self.reports],
            "rows": [asdict(row) for row in self.rows],
            **({"disabled": self.disabled} if self.disabled else {}),
            **({"reads": self.reads} if self.reads else {}),
            "tier": self.tier,
            **({"why_tier": self.why_tier} if self.why_tier else {}),
            **({"uncaptured": dict(self.uncaptured)} if self.uncaptured else {}),
            **({"offload": self.offload} if self.offload else {}),
        }

    def __str__(self) -> str:
        sites = [f"{site}  ({site.source})" for site in self.sites]
        misses = spell_misses(self.near_misses)
        changes = [line for report in self.reports for line in report.lines]
        changes += [f"{name:<20s} disabled" for name in self.disabled]
        reads = f"specialised by values:{listing(self.reads)}\n" if self.reads else ""
        left = [f"{path}: {reason}" for path, reason in self.uncaptured.items()]
        uncaptured = f"{len(left)} blocks run as themselves:{listing(left)}\n" if left else ""
        offload = f"offload: {self.offload}, {AT_A_TIME}\n" if self.offload else ""
        return (
            f"tier: {self.said_tier}\n"
            f"{offload}{reads}{uncaptured}"
            f"{len(self.sites)} sites:{listing(sites)}\n"
            f"{len(self.left_out)} sites left out:{listing(self.left_out)}\n"
            f"{len(self.near_misses)} near misses:{listing(misses)}\n"
            f"passes:{listing(changes)}\n"
            f"actions:{listing(self.rows)}"
        )


def describe_site(site: Site) -> dict[str, Any]:
    """Describe a site for JSON."""
    kept = [
        {"shape": list(each.shape), "dtype": str(each.dtype).removeprefix("torch.")}
        for each in site.kept
    ]
    names = ("index", "path", "kind", "variant", "source")
    return {**{name: getattr(site, name) for name in names}, "kept": kept}


def spell_misses(misses: Iterable[NoMatch]) -> list[str]:
    """A line for each near miss: the reason, the node, the source line."""
    return [f"{miss}  ({source_line(miss.node)})" for miss in misses]


def describe_miss(miss: NoMatch) -> dict[str, str]:
    """Describe a near miss for JSON."""
    return {
        "reason": miss.reason,
        "node": miss.node.name,
        "path": module_path(miss.node),
        "source": source_line(miss.node),
    }
