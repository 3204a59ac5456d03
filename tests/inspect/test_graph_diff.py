"""A graph diff is a value: empty for what computes alike, and all that differs otherwise."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dqar_fx
from dqar_fx import GraphDiff, graph_diff
from dqar_fx.passes import specialise
from dqar_fx.passes.support.operators import count_changes, count_operators
from dqar_fx.passes.support.runner import fork
from tests.helpers.inspected_denoisers import MODELS, STEPS, prepared, row
from tests.helpers.rewrite_checks import (
    Stack,
    captured,
    guarded,
    partial_named,
    rewritten,
    tokens,
)

STORE, REUSE = dqar_fx.Action.STORE, dqar_fx.Action.REUSE
KINDS = ("removed", "added", "rewired", "moved")
models = st.sampled_from(sorted(MODELS))
steps = st.integers(0, STEPS - 1)


def nodes(changes):
    return [each for group in changes.values() for each in group]


def stored_and_reused():
    gm = guarded(captured(Stack(2), tokens()))
    return (
        rewritten(gm, partial_named(specialise, actions=[action] * 2))
        for action in (STORE, REUSE)
    )


def renamed(gm, shift):
    """A fork whose nodes all have other names; some have those of others."""
    out = fork(gm)
    for number, node in enumerate(out.graph.nodes):
        node.name = f"moved_aside_{number}"
    names = [node.name for node in gm.graph.nodes]
    for node, name in zip(out.graph.nodes, names[shift:] + names[:shift], strict=True):
        node.name = name
    out.recompile()
    return out


# ---- no difference -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("step", range(STEPS))
def test_diff_of_a_row_with_itself_is_empty(name, step):
    found = graph_diff(row(name, step), fork(row(name, step)))
    assert not found
    assert str(found) == "no difference"
    assert not any(getattr(found, kind) for kind in KINDS)
    assert found.delta == {}
    assert found.lines == ()
    assert found.saved == dqar_fx.inspect.amounts.Amounts()
    assert found.before.macs > 0


@pytest.mark.parametrize("stage", ["captured", "guarded"])
@pytest.mark.parametrize("name", MODELS)
def test_diff_of_graphs_with_graphs_inside_is_empty(name, stage):
    program = prepared(name).program
    gm = program.captured.gm if stage == "captured" else program.guarded
    assert not graph_diff(gm, fork(gm))


@settings(deadline=None, max_examples=20)
@given(models, steps, st.integers(1, 40))
def test_diff_of_renamed_nodes_is_empty(name, step, shift):
    gm = row(name, step)
    assert not graph_diff(gm, renamed(gm, shift))


def test_diff_of_equal_operators_in_another_order_moves_lines_alone():
    before = captured(Stack(1), tokens())
    after = fork(before)
    q, k = after.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[:2]
    q.prepend(k)
    after.graph.lint()
    found = graph_diff(before, after)
    assert not any(getattr(found, kind) for kind in KINDS)
    assert found.delta == {}
    assert Counter(line[0] for line in found.lines[3:])["-"] == 1


# ---- differences -------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(models, steps, steps)
def test_diff_turned_around_has_all_signs_turned(name, first, second):
    there = graph_diff(row(name, first), row(name, second))
    back = graph_diff(row(name, second), row(name, first))
    assert {op: -count for op, count in back.delta.items()} == there.delta
    assert len(nodes(there.removed)) == len(nodes(back.added))
    assert there.saved == dqar_fx.inspect.amounts.Amounts() - back.saved
    assert bool(there) == bool(back)


@settings(deadline=None, max_examples=30)
@given(models, steps, steps)
def test_diff_parts_agree(name, first, second):
    before, after = row(name, first), row(name, second)
    found = graph_diff(before, after)
    assert found.delta == count_changes(count_operators(before), count_operators(after))
    change = Counter(counted(nodes(found.added)))
    change.subtract(counted(nodes(found.removed)))
    assert {op: count for op, count in change.items() if count} == found.delta
    saved = sum(found.by_module.values(), dqar_fx.inspect.amounts.Amounts())
    assert saved == found.saved
    kept = (each.macs for each in nodes(found.removed))
    assert sum(kept) - sum(each.macs for each in nodes(found.added)) == found.macs
    shown = {line[1:].strip() for line in found.lines if line[0] in "+-"}
    assert {each.text for each in nodes(found.rewired)} <= shown
    assert bool(found) == (dict(before_after(name, first)) != dict(before_after(name, second)))


def before_after(name, step):
    table = prepared(name).program.table
    return zip(table.sites, table.row(step), strict=True)


def counted(changes):
    names = {"read": "read slot"}
    return [
        names.get(each.kind, each.operator)
        for each in changes
        if each.kind not in ("input", "output")
    ]


def test_diff_tells_which_slot_is_written_and_read():
    store, reuse = stored_and_reused()
    found = graph_diff(store, reuse)
    reads = [each for each in nodes(found.added) if each.kind == "read"]
    writes = [each for each in nodes(found.removed) if each.kind == "write"]
    sites = ["blocks.0.attn", "blocks.1.attn"]
    assert [each.site for each in reads] == [each.path for each in reads] == sites
    assert [each.site for each in writes] == sites
    assert reads[0].text == "slot: float32[2, 3, 8] = read(slot[blocks.0.attn])"
    assert writes[0].operator == "aten.copy_.default"
    assert "slot[blocks.0.attn]" in writes[0].text
    assert found.delta["read slot"] == 2
    assert found.delta["aten.copy_.default"] == -2


def test_diff_tells_what_reads_something_else():
    store, reuse = stored_and_reused()
    found = graph_diff(store, reuse)
    assert {path: len(each) for path, each in found.rewired.items()} == {
        "blocks.0": 1,
        "blocks.1": 1,
    }
    (first, _) = nodes(found.rewired)
    assert first.before == "add: float32[2, 3, 8] = aten.add.Tensor(sin, linear_3)"
    assert first.text == "add: float32[2, 3, 8] = aten.add.Tensor(sin, slot)"
    assert first.source.startswith("rewrite_checks.py:")


def test_diff_of_other_constants_is_rewired():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return (x * self.factor).sin()

    found = graph_diff(captured(Scaled(2.0), tokens()), captured(Scaled(3.0), tokens()))
    (change,) = nodes(found.rewired)
    assert (change.before[-4:], change.text[-4:]) == ("2.0)", "3.0)")
    assert found.delta == {}
    assert found


def test_diff_of_other_models_is_no_error():
    found = graph_diff(row("dit", 0), row("flux", 0))
    assert found.delta
    assert found.parameter_bytes == found.before.parameter_bytes - found.after.parameter_bytes
    assert set(dict(found.removed)) > {"transformer_blocks.0.attn1"}


# ---- a value -----------------------------------------------------------------------------


def test_diff_json_gives_it_back():
    found = graph_diff(row("sd3", 1), row("sd3", STEPS - 1))
    again = GraphDiff.from_json(found.to_json())
    assert again == found
    assert again.by_module == found.by_module
    assert str(again) == str(found)
    assert again != graph_diff(row("sd3", 1), row("sd3", 3))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"delta": {}}', "null", "3"])
def test_diff_json_of_something_else_is_refused(text):
    with pytest.raises(dqar_fx.DqarError, match=r"no graph diff in JSON.*to_json"):
        GraphDiff.from_json(text)


@pytest.mark.parametrize("name", ["lines", "before", "removed", "by_module"])
def test_diff_json_with_a_part_missing_or_broken_is_refused(name):
    content = json.loads(graph_diff(row("dit", 0), row("dit", 7)).to_json())
    for broken in ({k: v for k, v in content.items() if k != name}, {**content, name: 7}):
        with pytest.raises(dqar_fx.DqarError, match="no graph diff in JSON"):
            GraphDiff.from_json(json.dumps(broken))


def test_diff_is_frozen():
    found = graph_diff(row("dit", 0), row("dit", 7))
    with pytest.raises(AttributeError):
        found.lines = ()


@pytest.mark.parametrize("which", ["before", "after"])
def test_diff_of_what_is_no_graph_is_refused(which):
    given = {"before": row("dit", 0), "after": row("dit", 0), which: nn.Linear(1, 1)}
    with pytest.raises(dqar_fx.DqarError, match=rf"{which} is a Linear.*row_graph"):
        graph_diff(**given)
