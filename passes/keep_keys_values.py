"""Keep a site's keys and values instead of its output.

The match is edited, not the graph: `insert_guards` builds the guard that it asks for.

Legal because the output is a function of queries, keys, values and what the site reads beside
them; the guard keeps that function, and evaluates it on kept keys and values, a fresh query:

    slot: %out : f32[2, 36, 60]                 reuse: %out = slot
 -> slots: %key, %value : f32[2, 3, 36, 20]     reuse: %out = linear(sdpa(%query, slot, slot))

It saves the projections of keys and values alone, takes two slots for one, and mixes a query
of this step with keys of an earlier one. This is the first design of the DQAR report, which
gave it up for that; it is here so that the claim can be tested.

Leaves alone: keys and values that the site does not compute itself, such as those of a text
that is projected with the conditioning: they do not change from step to step.

Source: DQAR report, "Phase 1: K/V caching" and "Root cause analysis".
"""

from __future__ import annotations

from dataclasses import replace

from .support.module_sites import Match, dense_specs
from .support.vocabulary import NoMatch


def keep_keys_values(match: Match) -> Match:
    """The match with its keys and values in the place of its outputs.

    Raises:
        NoMatch: The site computes neither.
    """
    if not match.operators:
        raise NoMatch(f"{match.site.path} is no attention: no keys or values", match.body[-1])
    body = set(match.body)
    read = (node for operator in match.operators for node in (operator.key, operator.value))
    kept = tuple(node for node in dict.fromkeys(read) if node in body)
    if not kept:
        raise NoMatch(
            f"keys and values of {match.site.path} are not computed by it, so that keeping "
            "them saves nothing",
            match.operators[0].result,
        )
    return replace(match, kept=kept, site=replace(match.site, kept=dense_specs(kept)))
