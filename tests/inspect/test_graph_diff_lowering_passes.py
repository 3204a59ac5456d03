"""Diffs of the passes for parameters, calibration and compilers."""

from collections import defaultdict
from functools import partial

import torch

from dqar_fx import graph_diff
from dqar_fx.capture.capture import capture
from dqar_fx.inspect import Amounts
from dqar_fx.passes import (
    expose_attention,
    find_attention,
    merge_duplicates,
    merge_equal_parameters,
    narrow_linears,
    normalise,
    specialise,
)
from dqar_fx.passes.support.conditioning_nodes import find_conditioning
from dqar_fx.passes.support.equal_tensors import find_tensor, tensor_layout
from dqar_fx.passes.support.graphs import parameter_path
from dqar_fx.passes.support.runner import fork, run_pass
from dqar_fx.schedule.action import Action
from tests.helpers.graph_diffs import counts, every_model, graph_after, nodes
from tests.helpers.inspected_denoisers import MODELS
from tests.helpers.rewrite_checks import guard_all, rewritten

NARROWED = {"dit": (5, 5), "pixart": (0, 0), "sd3": (4, 5), "flux": (4, 4)}
"""Linears narrowed, and the linears that they become."""
PIECES = {"aten.chunk.default", "aten.slice.Tensor", "aten.linear.default"}


# ---- parameters --------------------------------------------------------------------------


@every_model
def test_diff_of_merge_equal_parameters_is_readers_of_one_tensor(name):
    case = MODELS[name]()
    before = fork(capture(case.model, (), case.inputs(0)).gm)
    run_pass(before, normalise)
    copies = equalise_conditioning(before)
    after = fork(before)
    report = run_pass(after, merge_equal_parameters)
    found = graph_diff(before, after)
    assert report.rewrites == len(copies) > 0
    assert (report.delta, found.delta) == ({}, {})
    assert counts(found)[:2] == (0, 0)
    assert not found.moved
    for each in nodes(found.rewired):
        assert any(path in each.before for path in copies)
        assert not any(f"{path}," in each.text or f"{path})" in each.text for path in copies)
    size = sum(find_tensor(before, path).nbytes for path in copies)
    assert found.saved == Amounts(0, size, 0)


def equalise_conditioning(gm):
    """Give parameters of one shape that the conditioning reads equal values; the copies."""
    hoisted = frozenset(find_conditioning(gm))
    groups = defaultdict(dict)
    for node in gm.graph.find_nodes(op="get_attr"):
        if parameter_path(node) and hoisted.issuperset(node.users):
            tensor = find_tensor(gm, str(node.target))
            groups[tensor_layout(tensor)][str(node.target)] = tensor
    for tensors in groups.values():
        first, *others = tensors.values()
        with torch.no_grad():
            for other in others:
                other.copy_(first)
    return [path for tensors in groups.values() for path in list(tensors)[1:]]


def test_duplicated_embedders_of_dit_leave_one():
    """As the converted checkpoint has them: a copy of the embedder in every block."""
    case = MODELS["dit"]()
    first, *others = (block.norm1.emb for block in case.model.transformer_blocks)
    for other in others:
        other.load_state_dict(first.state_dict())
    before = fork(capture(case.model, (), case.inputs(0)).gm)
    run_pass(before, normalise)
    once = rewritten(before, merge_equal_parameters, merge_duplicates)
    found = graph_diff(before, once)
    evaluated = len(others) + 2  # the output layer evaluates the first one again
    assert found.delta["aten.embedding.default"] == 1 - evaluated
    assert found.delta["aten.linear.default"] == 2 * (1 - evaluated)
    size = sum(p.nbytes for p in first.parameters())
    assert found.saved.parameter_bytes == len(others) * size


# ---- calibration -------------------------------------------------------------------------


@every_model
def test_diff_of_expose_attention_is_more_outputs(name):
    before = graph_after(name, normalise)
    after = fork(before)
    matches = find_attention(after)[0]
    report = run_pass(after, partial(expose_attention, matches=matches))
    found = graph_diff(before, after)
    assert report.rewrites == sum(len(match.kept) + 1 for match in matches)
    assert report.delta == found.delta
    assert all(count > 0 for count in found.delta.values())
    assert found.delta["aten.special_entr.default"] == len(matches)
    assert (found.removed, found.moved) == ({}, {})
    (output,) = nodes(found.rewired)
    assert (output.kind, output.text.startswith(output.before.rstrip(")"))) == ("output", True)
    assert found.macs == -sum(each.macs for each in nodes(found.added)) < 0


# ---- compilers ---------------------------------------------------------------------------


@every_model
def test_diff_of_narrow_linears_is_products_over_fewer_rows(name):
    before = rewritten(graph_after(name, normalise, merge_duplicates), guard_all)
    reused = rewritten(before, partial(specialise, actions=[Action.REUSE] * count_sites(name)))
    after = fork(reused)
    report = run_pass(after, narrow_linears)
    found = graph_diff(reused, after)
    narrowed, linears = NARROWED[name]
    assert report.rewrites == narrowed
    assert found.delta == report.delta
    assert set(found.delta) <= PIECES
    assert found.delta.get("aten.linear.default", 0) == linears - narrowed
    assert found.delta.get("aten.chunk.default", 0) == -narrowed
    assert not found.moved
    assert (found.macs > 0) == (narrowed > 0)
    assert found.parameter_bytes == 0  # views of weights that stay
    assert bool(found) == (narrowed > 0)


def count_sites(name):
    return len(find_attention(fork(graph_after(name, normalise)))[0])
