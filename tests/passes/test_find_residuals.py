"""Blocks and runs of blocks as sites: what is found, and what is not."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.capture.capture import capture
from dqar_fx.passes import (
    find_around,
    find_residuals,
    find_sites,
    hoist_conditioning,
    normalise,
)
from dqar_fx.passes.support.runner import fork, run_passes
from tests.helpers.models import MAKERS, Attention
from tests.helpers.slow_cases import slow_but


def prepared(model, *args, **kwargs):
    gm = fork(capture(model, args, kwargs).gm)
    run_passes(gm, [normalise, hoist_conditioning])
    return gm


@pytest.fixture(scope="module")
def graphs():
    made = {}

    def graph(name):
        if name not in made:
            case = MAKERS[name]()
            made[name] = prepared(case.model, **case.inputs(0))
        return made[name]

    return graph


def found(gm, spans=()):
    matches, misses = find_residuals(gm, spans)
    return [m.site for m in matches], [miss.reason for miss in misses]


EXPECTED = {
    "dit": (5, ["transformer_blocks.0:5"]),
    "pixart": (3, ["transformer_blocks.0:3"]),
    "sd3": (4, ["transformer_blocks.0:4"]),
    "flux": (5, ["transformer_blocks.0:2", "single_transformer_blocks.0:3"]),
}


@pytest.mark.parametrize("name", slow_but("pixart", "sd3", of=MAKERS))
def test_find_residuals_every_block_and_the_span_of_each_list(graphs, name):
    sites, misses = found(graphs(name))
    num_blocks, spans = EXPECTED[name]
    assert sum(site.kind == "block" for site in sites) == num_blocks
    assert [site.path for site in sites if site.kind == "span"] == spans
    assert misses == []


def test_find_residuals_joint_blocks_keep_both_streams(graphs):
    matches, _ = find_residuals(graphs("sd3"))
    kept = {m.site.path: [list(spec.shape) for spec in m.site.kept] for m in matches}
    assert sorted(kept["transformer_blocks.1"]) == [[2, 7, 48], [2, 36, 48]]
    assert kept["transformer_blocks.3"] == [[2, 36, 48]]
    assert kept["transformer_blocks.0:4"] == [[2, 36, 48]]


def test_find_residuals_bases_have_the_shape_of_their_outputs(graphs):
    for name in MAKERS:
        for match in find_residuals(graphs(name))[0]:
            assert len(match.bases) == len(set(match.bases)) == len(match.outputs)
            for base, output in zip(match.bases, match.outputs, strict=True):
                assert base.meta["val"].shape == output.meta["val"].shape
                assert base not in match.body
                assert output in match.body


def test_find_residuals_span_by_path(graphs):
    sites, _ = found(graphs("dit"), ["transformer_blocks.1:4", "attention"])
    spans = [str(site) for site in sites if site.kind == "span"]
    assert_expected_inline(
        "\n".join(spans),
        """\
  5  transformer_blocks.0:5  span, residual, keeps [2, 36, 60]
  6  transformer_blocks.1:4  span, residual, keeps [2, 36, 60]""",
    )


@pytest.mark.parametrize(
    "path", ["transformer_blocks.3:9", "transformer_blocks.3:3", "other.0:2"]
)
def test_find_residuals_span_that_is_none_is_not_found(graphs, path):
    assert path not in [site.path for site in found(graphs("dit"), [path])[0]]


def test_find_around_blocks_contain_their_attention(graphs):
    matches, _ = find_sites(graphs("dit"), ["transformer_blocks.1:3"])
    names = [match.site.path for match in matches]
    around = {
        names[place]: {names[outer] for outer in outers}
        for place, outers in enumerate(find_around(matches))
    }
    assert around["transformer_blocks.0.attn1"] == {
        "transformer_blocks.0",
        "transformer_blocks.0:5",
    }
    assert around["transformer_blocks.1:3"] == {"transformer_blocks.0:5"}
    assert "transformer_blocks.1:3" in around["transformer_blocks.2.ff"]
    assert around["transformer_blocks.0:5"] == set()


def test_find_residuals_leave_other_sites_as_they_are(graphs):
    matches, _ = find_sites(graphs("dit"))
    assert {match.site.kind for match in matches} == {
        "self",
        "feed_forward",
        "block",
        "span",
    }
    assert [match.site.index for match in matches] == list(range(len(matches)))


class Blocks(nn.Module):
    """Blocks given as a list, in a chain; optionally the first is read at the end."""

    def __init__(self, blocks, *, skips=False):
        super().__init__()
        self.blocks, self.skips = nn.ModuleList(blocks), skips

    def forward(self, x, timestep):
        early = None
        for block in self.blocks:
            x = block(x, timestep)
            early = x if early is None else early
        return x + early.sin() if self.skips else x


class Block(nn.Module):
    def __init__(self, *, adds=True, dropout=0.0):
        super().__init__()
        self.attention, self.adds = Attention(8), adds
        self.dropout = dropout

    def forward(self, x, timestep):
        change = self.attention(x * timestep)
        if self.dropout:
            change = nn.functional.dropout(change, self.dropout, training=True)
        return x + change if self.adds else change


def misses_of(model):
    gm = prepared(model, torch.randn(2, 5, 8), torch.ones(()))
    return found(gm)


def test_find_residuals_block_that_does_not_add_rejected_with_its_reason():
    sites, misses = misses_of(Blocks([Block(), Block(adds=False)]).eval())
    assert [site.path for site in sites] == ["blocks.0"]
    assert [reason.split(",")[0] for reason in misses] == [
        "blocks.1 gives [2",
        "blocks.0:2 gives [2",
    ]
    assert "not a residual" in misses[0]


def test_find_residuals_random_block_rejected():
    sites, misses = misses_of(Blocks([Block(dropout=0.5)]).eval())
    assert sites == []
    assert misses == ["blocks.0 is random: reuse would freeze it"]


def test_find_residuals_span_with_a_long_skip_keeps_both_on_one_input():
    model = Blocks([Block(), Block()], skips=True).eval()
    gm = prepared(model, torch.randn(2, 5, 8), torch.ones(()))
    matches, misses = find_residuals(gm)
    assert [match.site.path for match in matches] == ["blocks.0", "blocks.1", "blocks.0:2"]
    assert len(matches[-1].outputs) == 2
    assert len(set(matches[-1].bases)) == 1
    assert misses == []
