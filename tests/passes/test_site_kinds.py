"""The table of kinds: what is found is in it, and a new kind is an entry and a pass."""

import pytest
import torch

from dqar_fx.builder.choose_sites import choose_sites
from dqar_fx.errors import SiteError
from dqar_fx.passes import FORMATS, SITE_KINDS, SiteKind, find_sites, insert_guards
from dqar_fx.passes.site_kinds import group_kinds
from dqar_fx.passes.support.module_paths import call_key, group_by_call
from dqar_fx.passes.support.module_sites import match_site, numbered
from dqar_fx.passes.support.runner import fork
from dqar_fx.schedule.action import Action
from tests.helpers.rewrite_checks import Stack, allocated_slots, captured, tokens

NORM = torch.ops.aten.layer_norm.default


def find_norms(gm):
    """A kind that nobody needs: layer norms."""
    anchors = {call_key(node): node for node in gm.graph.nodes if node.target is NORM}
    members = group_by_call(gm.graph.nodes, anchors)
    found = [
        match_site(key, members[key], [node], "norm", kind=lambda *_: "norm", variant="norm")
        for key, node in anchors.items()
    ]
    return numbered(found), []


NORMS = SiteKind("norm", find_norms, "a layer norm", ("light", "all"))
MORE_KINDS = (*SITE_KINDS, NORMS)


@pytest.fixture(scope="module")
def gm():
    return captured(Stack(depth=2), tokens())


def kinds_of(matches):
    return [match.site.kind for match in matches]


def test_group_kinds_are_those_of_the_table():
    attention = ("self", "cross", "joint")
    assert group_kinds() == {"attention": attention, "all": (*attention, "feed_forward")}


def test_find_sites_finds_kinds_of_the_table_alone(gm):
    names = {kind.name for kind in SITE_KINDS}
    assert set(kinds_of(find_sites(gm)[0])) <= names


def test_find_sites_disabled_pass_is_not_asked(gm):
    found = kinds_of(find_sites(gm, disable=("find_residuals",))[0])
    assert found == ["self", "self"]


def test_new_kind_is_found_in_execution_order(gm):
    matches, _ = find_sites(gm, kinds=(SITE_KINDS[0], NORMS))
    assert kinds_of(matches) == ["norm", "self", "norm", "self"]
    assert [match.site.index for match in matches] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("norm", ["norm"] * 2),
        ("light", ["norm"] * 2),
        ("all", ["norm", "self"] * 2),
        (("self", "blocks.1.norm"), ["self", "norm", "self"]),
    ],
)
def test_new_kind_is_chosen_by_name_group_and_path(gm, wanted, expected):
    matches, _ = find_sites(gm, kinds=MORE_KINDS)
    assert kinds_of(choose_sites(matches, (), wanted, MORE_KINDS)) == expected


def test_new_kind_is_named_where_nothing_is_selected(gm):
    matches, _ = find_sites(gm, kinds=MORE_KINDS)
    with pytest.raises(SiteError, match=r"'attention', 'all', 'light', 'self', .*, 'norm'"):
        choose_sites(matches, (), "norms", MORE_KINDS)


def test_new_kind_is_guarded_kept_and_reused(gm):
    guarded, x, other = fork(gm), tokens(), tokens() + 1
    matches = choose_sites(find_sites(guarded, kinds=MORE_KINDS)[0], (), "norm", MORE_KINDS)
    insert_guards(guarded, matches, FORMATS["same"])
    guarded.recompile()
    slots = iter(allocated_slots(guarded))
    inputs = guarded.graph.find_nodes(op="placeholder")
    buffers = {node: next(slots) for node in inputs if "slot" in node.meta}

    def run(x, action):
        given = (action if "action" in node.meta else buffers.get(node, x) for node in inputs)
        return guarded(*given)[0]

    assert torch.equal(run(x, Action.STORE), gm(x)[0])
    assert torch.equal(run(other, Action.COMPUTE), gm(other)[0])
    assert torch.equal(run(x, Action.REUSE), gm(x)[0])  # what was kept is of x
    assert not torch.equal(run(other, Action.REUSE), gm(other)[0])
