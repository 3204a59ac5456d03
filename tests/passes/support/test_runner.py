"""The runner forks, runs passes in order, lints, and reports."""

import re
from functools import partial

import pytest
import torch

from dqar_fx.passes import normalise
from dqar_fx.passes.support.runner import PassReport, fork, run_pass, run_passes
from tests.helpers.rewrite_checks import Stack, captured, check_values, printed, tokens


@pytest.fixture
def gm():
    return captured(Stack(1), tokens())


def remove_last(gm, *, count=1):
    """Let the output skip the last nodes; the number removed."""
    for _ in range(count):
        last = gm.graph.output_node().args[0][0]
        last.replace_all_uses_with(last.args[0])
        gm.graph.erase_node(last)
    return count


def test_run_passes_reports_in_order_with_node_counts(gm):
    size = len(gm.graph.nodes)
    first, second = run_passes(gm, [normalise, remove_last])
    assert (first.name, first.rewrites, first.nodes) == ("normalise", 0, (size, size))
    assert (second.name, second.rewrites) == ("remove_last", 1)
    assert second.nodes == (size, size - 1)
    assert first.graph == second.graph == "step"
    assert first.ms > 0.0


def test_run_pass_name_is_seen_through_partial(gm):
    report = run_pass(gm, partial(partial(remove_last), count=1), graph="conditioning_1")
    assert report.name == "remove_last"
    assert report.graph == "conditioning_1"


def test_run_pass_recompiles(gm):
    run_pass(gm, remove_last)
    assert "cos" not in gm.code
    before = captured(Stack(1), tokens())
    assert "cos" in before.code


def test_run_pass_graph_that_is_broken_rejected(gm):
    def break_order(gm):
        last = gm.graph.output_node().args[0][0]
        next(node for node in gm.graph.nodes if node.op == "call_function").args = (last,)
        return 1

    with pytest.raises(RuntimeError, match="before it has been defined"):
        run_pass(gm, break_order)


def test_run_passes_none_gives_no_reports(gm):
    assert run_passes(gm, []) == []


def test_pass_report_in_one_line():
    report = PassReport("normalise", "step", 4, (20, 16), 1.25)
    assert str(report) == (
        "normalise            step                 4 rewrites  nodes 20 -> 16 (-4)  1.2 ms"
    )
    grown = PassReport("hoist_conditioning", "step", 4, (20, 26), 1.25)
    assert re.search(r"nodes 20 -> 26 \(\+6\)", str(grown))


def test_fork_shares_parameters(gm):
    forked = dict(fork(gm).named_parameters())
    assert forked
    for name, parameter in gm.named_parameters():
        assert forked[name] is parameter
        assert forked[name].data_ptr() == parameter.data_ptr()


def test_fork_has_nodes_and_records_of_its_own(gm):
    forked = fork(gm)
    for node in forked.graph.nodes:
        node.meta["mark"] = True
    assert not any("mark" in node.meta for node in gm.graph.nodes)
    assert {id(n) for n in forked.graph.nodes}.isdisjoint(map(id, gm.graph.nodes))


def test_fork_keeps_fake_tensors(gm):
    pairs = zip(gm.graph.nodes, fork(gm).graph.nodes, strict=True)
    for ours, theirs in pairs:
        if isinstance(value := ours.meta.get("val"), torch.Tensor):
            assert theirs.meta["val"].shape == value.shape


def test_fork_edited_leaves_the_original_alone(gm):
    before, expected = printed(gm), gm(tokens())
    forked = fork(gm)
    run_pass(forked, partial(remove_last, count=2))
    assert printed(gm) == before
    check_values(gm(tokens()), expected)
    assert printed(forked) != before
