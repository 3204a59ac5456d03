"""The diff of a pass shows what the pass says it does, and nothing else."""

import textwrap
from functools import partial

import pytest
from expecttest import assert_expected_inline

from dqar_fx import graph_diff
from dqar_fx.inspect import Amounts
from dqar_fx.passes import (
    FORMATS,
    find_attention,
    hoist_conditioning,
    insert_guards,
    keep_keys_values,
    merge_duplicates,
    normalise,
    outline_regions,
    specialise,
    turn_skinny_linears,
    unify_layouts,
)
from dqar_fx.passes.support.runner import fork, run_pass
from dqar_fx.schedule.action import Action
from tests.helpers.graph_diffs import change_of, counts, every_model, graph_after, nodes, texts
from tests.helpers.rewrite_checks import (
    Around,
    Bare,
    Stack,
    captured,
    guard_all,
    guarded,
    rewritten,
    tokens,
)

SITES = {"dit": 5, "pixart": 6, "sd3": 5, "flux": 5}
SLOTS = {"dit": 5, "pixart": 6, "sd3": 8, "flux": 7}
READS = {**SLOTS, "sd3": 5}  # nothing needs the text any more
STAGES = {"dit": 3, "pixart": 4, "sd3": 4, "flux": 6}
REGIONS = {"dit": 7, "pixart": 5, "sd3": 6, "flux": 7}
SKINNY = {"dit": 18, "pixart": 3, "sd3": 13, "flux": 14}
COPIES = {"dit": 1, "pixart": 1, "sd3": 0, "flux": 2}
NORMALISED = {
    "dit": {
        "_assert_tensor_metadata.default": 18,
        "div.Tensor": 5,
        "dropout.default": 10,
        "mul.Tensor": 6,
        "to.dtype": 18,
    },
    "pixart": {
        "_assert_tensor_metadata.default": 13,
        "div.Tensor": 6,
        "dropout.default": 9,
        "mul.Tensor": 1,
        "to.dtype": 10,
        "to.dtype_layout": 3,
    },
    "sd3": {
        "_assert_tensor_metadata.default": 28,
        "dropout.default": 12,
        "mul.Tensor": 1,
        "slice.Tensor": 1,
        "to.dtype": 28,
    },
    "flux": {
        "_assert_tensor_metadata.default": 71,
        "div.Tensor": 3,
        "dropout.default": 6,
        "mul.Tensor": 5,
        "slice.Tensor": 1,
        "to.dtype": 43,
        "to.dtype_layout": 22,
    },
}


# ---- each pass, on each model ------------------------------------------------------------


@every_model
def test_diff_of_normalise_is_what_does_nothing(name):
    found = change_of(name, normalise)
    assert found.delta == {f"aten.{op}": -count for op, count in NORMALISED[name].items()}
    assert counts(found)[:2] == (sum(NORMALISED[name].values()), 0)
    assert not found.moved
    assert (found.macs, found.parameter_bytes) == (0, 0)


@every_model
def test_diff_of_hoist_conditioning_is_stages_and_merged_duplicates(name):
    merged = change_of(name, normalise, merge_duplicates)
    found = change_of(name, normalise, hoist_conditioning)
    assert found.delta == {**merged.delta, "stage": STAGES[name]}
    assert {each.kind for each in nodes(found.added)} == {"stage"}
    assert texts(found.removed) == texts(merged.removed)
    assert texts(found.rewired) == texts(merged.rewired)
    inside = {each.within[0].split("_")[0] for each in nodes(found.moved)}
    assert inside == {"stage conditioning"}
    assert found.saved == merged.saved


@every_model
def test_diff_of_merge_duplicates_is_what_others_compute(name):
    found = change_of(name, normalise, merge_duplicates)
    assert all(count < 0 for count in found.delta.values())
    assert (found.added, found.moved) == ({}, {})
    again = graph_after(name, normalise, merge_duplicates)
    assert run_pass(fork(again), merge_duplicates).rewrites == 0


@every_model
def test_diff_of_unify_layouts_is_copies_for_who_reads_them(name):
    found = change_of(name, normalise, hoist_conditioning, unify_layouts)
    copies = COPIES[name]
    assert found.delta == ({"aten.contiguous.default": copies} if copies else {})
    assert counts(found)[:2] == (0, copies)
    names = {each.name for each in nodes(found.added)}
    assert all(any(n in each.text for n in names) for each in nodes(found.rewired))
    assert not found.moved


@every_model
def test_diff_of_insert_guards_is_guards_around_what_is_there(name):
    found = change_of(name, normalise, hoist_conditioning, guard_all)
    assert found.delta == {"compute_or_reuse": SITES[name]}
    assert counts(found) == (0, SITES[name], 0)
    assert [each.path for each in nodes(found.added)] == list(found.added)
    around = {each.within for each in nodes(found.moved)}
    assert around == {(f"guard {path}",) for path in found.added}
    assert all(
        each.path.startswith(each.within[0].removeprefix("guard "))
        for each in nodes(found.moved)
    )
    assert found.saved == Amounts()


@every_model
def test_diff_of_outline_regions_is_regions_around_what_is_there(name):
    found = change_of(name, normalise, hoist_conditioning, guard_all, outline_regions)
    assert found.delta == {"region": REGIONS[name]}
    assert counts(found) == (0, REGIONS[name], 0)
    for each in nodes(found.moved):
        block = each.within[0].removeprefix("region").strip()
        assert each.path.startswith(block)
    assert found.saved == Amounts()
    assert found.by_module == {}


@every_model
@pytest.mark.parametrize("action", [Action.COMPUTE, Action.STORE])
def test_diff_of_specialise_that_computes_takes_the_guards_away(name, action):
    found = graph_diff(*specialised(name, action))
    written = {"aten.copy_.default": SLOTS[name]} if action == Action.STORE else {}
    assert found.delta == {**written, "compute_or_reuse": -SITES[name]}
    assert {each.kind for each in nodes(found.removed)} <= {"guard", "input"}
    assert {each.kind for each in nodes(found.added)} == ({"write"} if written else set())
    assert not found.rewired
    assert {each.within for each in nodes(found.moved)} == {()}
    assert found.saved == Amounts()


@every_model
def test_diff_of_specialise_that_reuses_takes_the_sites_away(name):
    found = graph_diff(*specialised(name, Action.REUSE))
    assert found.delta["compute_or_reuse"] == -SITES[name]
    assert found.delta["read slot"] == READS[name]
    assert {each.kind for each in nodes(found.added)} == {"read"}
    gone = [each for each in nodes(found.removed) if each.kind == "operator"]
    assert all("slot" in each.text for each in nodes(found.rewired) if each.kind != "output")
    assert found.macs == sum(each.macs for each in gone) > 0


def specialised(name, action):
    """The guarded graph, and the same with one action for all sites."""
    before = graph_after(name, normalise, hoist_conditioning, guard_all)
    actions = [action] * SITES[name]
    return before, rewritten(before, partial(specialise, actions=actions))


@every_model
def test_diff_of_turn_skinny_linears_is_other_products_of_as_many_macs(name):
    found = change_of(name, normalise, turn_skinny_linears)
    turned = SKINNY[name]
    assert found.delta == {
        "aten.add.Tensor": turned,
        "aten.contiguous.default": turned,
        "aten.linear.default": -turned,
        "aten.mm.default": turned,
        "aten.t.default": 2 * turned,
    }
    assert (found.macs, found.parameter_bytes) == (0, 0)
    assert not found.moved


@every_model
def test_diff_of_keep_keys_values_is_guards_over_other_slots(name):
    before = graph_after(name, normalise, guard_all)
    after = fork(graph_after(name, normalise))
    matches = [keep_keys_values(match) for match in find_attention(after)[0]]
    insert_guards(after, matches, FORMATS["same"])
    found = graph_diff(before, after)
    assert found.delta == {}
    assert {each.kind for each in nodes(found.removed)} == {"guard"}
    assert {each.kind for each in nodes(found.added)} == {"guard"}
    assert counts(found)[:2] == (SITES[name], SITES[name])
    assert found.saved == Amounts()


# ---- one in full -------------------------------------------------------------------------


def test_diff_in_full_of_a_guard_and_of_its_reuse():
    before = captured(Around(Bare()), tokens())
    guard = guarded(before)
    stored, reused = (
        rewritten(guard, partial(specialise, actions=[action]))
        for action in (Action.STORE, Action.REUSE)
    )
    assert_expected_inline(
        wrapped(graph_diff(before, guard)),
        """\
compute_or_reuse: +1
--- before
+++ after
@@ -1,6 +1,7 @@
 x: float32[2, 3, 8] = input
 sin: float32[2, 3, 8] = aten.sin.default(x)
-neg: float32[2, 3, 8] = aten.neg.default(sin)
-scaled_dot_product_attention: float32[2, 3, 8] =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
+compute_or_reuse = compute_or_reuse('attn', [[[slot[attn]]]], 'same')
+    neg: float32[2, 3, 8] = aten.neg.default(sin)
+    scaled_dot_product_attention: float32[2, 3, 8] =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
 add: float32[2, 3, 8] = aten.add.Tensor(x, scaled_dot_product_attention)
 return (add)""",
    )
    assert_expected_inline(
        wrapped(graph_diff(guard, stored)),
        """\
aten.copy_.default: +1
compute_or_reuse: -1
--- before
+++ after
@@ -1,7 +1,7 @@
 x: float32[2, 3, 8] = input
 sin: float32[2, 3, 8] = aten.sin.default(x)
-compute_or_reuse = compute_or_reuse('attn', [[[slot[attn]]]], 'same')
-    neg: float32[2, 3, 8] = aten.neg.default(sin)
-    scaled_dot_product_attention: float32[2, 3, 8] =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
+neg: float32[2, 3, 8] = aten.neg.default(sin)
+scaled_dot_product_attention: float32[2, 3, 8] =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
+copy_: float32[2, 3, 8] = aten.copy_.default(slot[attn], scaled_dot_product_attention)
 add: float32[2, 3, 8] = aten.add.Tensor(x, scaled_dot_product_attention)
 return (add)""",
    )
    assert_expected_inline(
        wrapped(graph_diff(stored, reused)),
        """\
aten.copy_.default: -1
aten.neg.default: -1
aten.scaled_dot_product_attention.default: -1
aten.sin.default: -1
read slot: +1
--- before
+++ after
@@ -1,7 +1,4 @@
 x: float32[2, 3, 8] = input
-sin: float32[2, 3, 8] = aten.sin.default(x)
-neg: float32[2, 3, 8] = aten.neg.default(sin)
-scaled_dot_product_attention: float32[2, 3, 8] =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
-copy_: float32[2, 3, 8] = aten.copy_.default(slot[attn], scaled_dot_product_attention)
-add: float32[2, 3, 8] = aten.add.Tensor(x, scaled_dot_product_attention)
+slot: float32[2, 3, 8] = read(slot[attn])
+add: float32[2, 3, 8] = aten.add.Tensor(x, slot)
 return (add)""",
    )


def wrapped(found):
    """The text of a diff in lines of at most 90 columns, without what is saved."""
    text = str(found).partition("saved: ")[0] + "\n".join(found.lines)
    options = {"break_long_words": False, "subsequent_indent": "        "}
    lines = (textwrap.wrap(line, 90, **options) for line in text.splitlines())
    return "\n".join(piece for pieces in lines for piece in pieces)


def test_diff_of_guards_of_other_formats_is_rewired():
    before = captured(Stack(1), tokens())
    found = graph_diff(guarded(before), guarded(before, "int8"))
    (guard,) = (each for each in nodes(found.rewired) if each.kind == "guard")
    assert ("'same'" in guard.before, "'int8'" in guard.text) == (True, True)
    assert found.delta == {}
    assert found


def test_diff_of_guards_that_resume_in_another_way_is_a_difference():
    before = captured(Stack(1), tokens())
    keys_values = fork(before)
    matches = [keep_keys_values(match) for match in find_attention(keys_values)[0]]
    insert_guards(keys_values, matches, FORMATS["same"])
    output = rewritten(before, guard_all)
    found = graph_diff(output, keys_values)
    assert {each.kind for each in nodes(found.removed)} == {"guard"}
    assert {each.kind for each in nodes(found.added)} == {"guard"}
    assert "slot[blocks.0.attn, 1]" in nodes(found.added)[0].text
    assert found.delta == {}
