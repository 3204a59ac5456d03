"""Feed-forward sites: what is found, and what is not."""

from __future__ import annotations

import pytest

from dqar_fx.capture.capture import capture
from dqar_fx.passes import find_feed_forward, hoist_conditioning, normalise
from dqar_fx.passes.support.runner import fork, run_passes
from tests.helpers.models import MAKERS

EXPECTED = {
    "dit": (5, 0),
    "pixart": (3, 0),
    "sd3": (7, 0),  # two streams, but for the text of the last block
    "flux": (4, 3),
}


@pytest.mark.parametrize("name", MAKERS)
def test_find_feed_forward_sites_and_near_misses(name):
    case = MAKERS[name]()
    gm = fork(capture(case.model, (), case.inputs(0)).gm)
    run_passes(gm, [normalise, hoist_conditioning])
    matches, misses = find_feed_forward(gm)
    assert (len(matches), len(misses)) == EXPECTED[name]
    assert {match.site.kind for match in matches} == {"feed_forward"}
    for match in matches:
        assert match.site.variant in ("gelu", "silu")
        assert len(match.outputs) == 1
    for miss in misses:
        assert "joined with other values" in miss.reason
        assert 'sites="block"' in miss.reason
