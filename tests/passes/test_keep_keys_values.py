"""keep_keys_values: the guard keeps what the attention reads, and asks it afresh."""

from itertools import product

import pytest
import torch
from dqar_fx.passes import (
    FORMATS,
    Action,
    NoMatch,
    compute_or_reuse,
    find_attention,
    insert_guards,
    keep_keys_values,
    specialise,
)
from expecttest import assert_expected_inline
from torch import nn

from tests.passes.checks import (
    HEADS,
    LOSSY,
    TOKENS,
    WIDTH,
    Around,
    Attention,
    Joined,
    JointAttention,
    Stack,
    allocated_slots,
    captured,
    captured_dit,
    check_metadata,
    check_rewrite,
    check_twice,
    check_values,
    fused,
    merge_heads,
    operators,
    partial_named,
    printed,
    projections,
    rewritten,
    split_heads,
    tokens,
    unfused,
)

COMPUTE, STORE, REUSE = Action.COMPUTE, Action.STORE, Action.REUSE
LINEAR, SDPA = "aten.linear.default", "aten.scaled_dot_product_attention.default"
WORDS = tokens(2, 5, WIDTH)
LATER = tokens().flip(0).exp()
"""The input of a later step."""


# ---- networks ----------------------------------------------------------------------------


class Own(nn.Module):
    """Computes keys and values without parameters: the smallest site."""

    def forward(self, x):
        return fused(x, x.neg(), x.cos())


class Calls(nn.Module):
    """Attention on what a function makes of the inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class OneProjection(nn.Module):
    """Queries, keys and values from one linear."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = map(split_heads, self.qkv(x).chunk(3, -1))
        return self.out(merge_heads(fused(q, k, v)))


class Asked(JointAttention):
    """Joint attention in two operators, which read the same keys and values."""

    def forward(self, x, text):
        (q, k, v), (ask, more_k, more_v) = self.project_image(x), self.project_text(text)
        k, v = torch.cat([k, more_k], 1), torch.cat([v, more_v], 1)
        return self.to_out(fused(q, k, v)), self.add_out(fused(ask, k, v))


class PassesOn(nn.Module):
    """Attention, and its values for others to read."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = projections()

    def forward(self, x):
        v = self.to_v(x)
        return self.to_out(fused(self.to_q(x), self.to_k(x), v)), v


class ReadsBoth(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = PassesOn()

    def forward(self, x):
        y, v = self.attn(x)
        return y.sin() + v.cos()


# ---- helpers -----------------------------------------------------------------------------


def keep_all(gm, cache="same"):
    """Guard every site of a graph by its keys and values."""
    matches = [keep_keys_values(match) for match in find_attention(gm)[0]]
    return insert_guards(gm, matches, FORMATS[cache])


def kept(gm, cache="same"):
    """A fork of a graph that keeps keys and values."""
    return rewritten(gm, partial_named(keep_all, cache=cache))


def specialised(gm, *actions):
    return rewritten(gm, partial_named(specialise, actions=actions))


def input_names(gm):
    return [node.name for node in gm.graph.find_nodes(op="placeholder")]


def by_name(gm, named):
    """Call a graph with those of its inputs that it still has."""
    return gm(*(named[name] for name in input_names(gm)))


def trajectory(gm, first, later, cache="same"):
    """A step that stores and one that reuses, each specialised; their outputs."""
    guards = kept(gm, cache)
    slots = allocated_slots(guards)
    names = input_names(guards)
    fixed = dict(zip([n for n in names if n.startswith("slot")], slots, strict=True))
    flowing = names[: len(first)]
    stored, reused = (
        by_name(
            specialised(guards, action), {**fixed, **dict(zip(flowing, given, strict=True))}
        )
        for action, given in ((STORE, first), (REUSE, later))
    )
    return stored, reused, slots


def match_of(model, *inputs):
    (match,), _ = find_attention(captured(model, *inputs))
    return match


# ---- the rewrite -------------------------------------------------------------------------


def test_keep_keys_values_smallest_site_rewritten():
    gm = captured(Around(Own()), tokens())
    out = check_rewrite(
        gm,
        keep_all,
        [tokens()],
        rewrites=1,
        ops={
            "aten.neg.default": -1,
            "aten.cos.default": -1,
            SDPA: -1,
            str(compute_or_reuse): 1,
            "<built-in function getitem>": 1,
        },
        more_inputs=[COMPUTE, tokens(), tokens()],
    )
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", action_0, slot_0_0_0: "f32[2, 3, 8]", slot_0_1_0:
    "f32[2, 3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    body_0 = self.body_0
    resume_0 = self.resume_0
    compute_or_reuse = dqar_fx_passes_insert_guards_compute_or_reuse(action_0, None,
        [[[slot_0_0_0]], [[slot_0_1_0]]], body_0, resume_0, 'same', [torch.float32,
        torch.float32], [sin], [sin])
    getitem: "f32[2, 3, 8]" = compute_or_reuse[0]
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, getitem)
    return (add,)
class body_0(torch.nn.Module):
    def forward(self, sin: "f32[2, 3, 8]"):
        neg: "f32[2, 3, 8]" = aten.neg.default(sin)
        cos: "f32[2, 3, 8]" = aten.cos.default(sin)
        scaled_dot_product_attention: "f32[2, 3, 8]" =
            aten.scaled_dot_product_attention.default(sin, neg, cos)
        return (scaled_dot_product_attention, neg, cos)
class resume_0(torch.nn.Module):
    def forward(self, neg: "f32[2, 3, 8]", cos: "f32[2, 3, 8]", sin: "f32[2, 3, 8]"):
        scaled_dot_product_attention: "f32[2, 3, 8]" =
            aten.scaled_dot_product_attention.default(sin, neg, cos)
        return (scaled_dot_product_attention,)""",
    )


def test_keep_keys_values_smallest_site_reused():
    out = specialised(kept(captured(Around(Own()), tokens())), REUSE)
    out.delete_submodule("body_0")
    out.delete_submodule("resume_0")
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", slot_0_0_0: "f32[2, 3, 8]", slot_0_1_0: "f32[2,
    3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    scaled_dot_product_attention: "f32[2, 3, 8]" =
        aten.scaled_dot_product_attention.default(sin, slot_0_0_0, slot_0_1_0)
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, scaled_dot_product_attention)
    return (add,)""",
    )


def test_keep_keys_values_describes_what_is_kept_and_leaves_the_graph_alone():
    gm = captured(Around(Attention()), tokens())
    before = printed(gm)
    (match,), _ = find_attention(gm)
    found = keep_keys_values(match)
    assert printed(gm) == before
    (operator,) = match.operators
    assert found.kept == (operator.key, operator.value)
    shape, stride = (2, HEADS, TOKENS, 4), (TOKENS * WIDTH, 4, WIDTH, 1)
    assert [(s.shape, s.stride) for s in found.site.kept] == [(shape, stride)] * 2
    assert (found.outputs, found.body, found.inputs) == (
        match.outputs,
        match.body,
        match.inputs,
    )
    assert found.site.path == "attn"
    assert str(found.site).endswith("keeps [2, 2, 3, 4], [2, 2, 3, 4]")


def test_keep_keys_values_one_tensor_for_both_is_kept_once():
    model = Around(Calls(lambda x: attend_to(x, x.cos())))
    gm = captured(model, tokens())
    (match,), _ = find_attention(gm)
    assert [node.name for node in keep_keys_values(match).kept] == ["cos"]
    first = tokens().sin()
    _, (result,), slots = trajectory(gm, [tokens()], [LATER])
    check_values(slots, [first.cos()])
    check_values([result], [LATER + attend_to(LATER.sin(), first.cos())])


def attend_to(x, source):
    return fused(x, source, source)


def test_keep_keys_values_values_alone_where_keys_are_given():
    model = Around(Calls(lambda x, keys: fused(x, keys, x.cos())))
    gm = captured(model, tokens(), tokens())
    (match,), _ = find_attention(gm)
    assert [node.name for node in keep_keys_values(match).kept] == ["cos"]
    keys, first = LATER.neg(), tokens().sin()
    _, (result,), _ = trajectory(gm, [tokens(), tokens()], [LATER, keys])
    check_values([result], [LATER + fused(LATER.sin(), keys, first.cos())])


def test_keep_keys_values_given_from_outside_is_no_match():
    model = Around(Calls(lambda x, k, v: fused(x.neg(), k, v).sin()))
    match = match_of(model, tokens(), WORDS, WORDS)
    with pytest.raises(NoMatch) as raised:
        keep_keys_values(match)
    assert raised.value.reason == (
        "keys and values of attn are not computed by it, so that keeping them saves nothing"
    )
    assert raised.value.node is match.operators[0].result
    assert str(raised.value).endswith("(at %scaled_dot_product_attention)")


def test_keep_keys_values_that_others_read_stay_computed():
    """Values that the module passes on are none of the site's to keep."""
    torch.manual_seed(0)
    model = ReadsBoth().requires_grad_(False)
    gm = captured(model, tokens())
    (match,), _ = find_attention(gm)
    assert keep_keys_values(match).kept == (match.operators[0].key,)
    _, (result,), _ = trajectory(gm, [tokens()], [LATER])
    attn = model.attn
    y = attn.to_out(fused(attn.to_q(LATER), attn.to_k(tokens()), attn.to_v(LATER)))
    check_values([result], [y.sin() + attn.to_v(LATER).cos()])


def test_keep_keys_values_twice_finds_nothing():
    check_twice(captured(Stack(2), tokens()), partial_named(keep_all, cache="int8"))


def test_keep_keys_values_no_site_left_alone():
    check_rewrite(
        captured(nn.Linear(WIDTH, WIDTH), tokens()), keep_all, [tokens()], rewrites=0
    )


def test_keep_keys_values_parts_own_no_parameters():
    gm = kept(captured(Around(Attention()), tokens()))
    for name in ("body_0", "resume_0"):
        assert not list(gm.get_submodule(name).parameters())
    (guard,) = (node for node in gm.graph.nodes if "site" in node.meta)
    *_, inputs, others = guard.args
    weights = [f"attn_to_{name}_weight" for name in ("q", "k", "v", "out")]
    assert [node.name for node in inputs] == ["sin", *weights]
    assert [node.name for node in others] == ["sin", weights[0], weights[3]]


# ---- networks: what is left, and its values ----------------------------------------------


def own_again(model, first, later):
    x, y = first.sin(), later.sin()
    return (later + fused(y, x.neg(), x.cos()),)


def attention_again(model, first, later, *, attend=fused, source=None):
    attn, x, y = model.attn, first.sin(), later.sin()
    q, k, v = map(split_heads, (attn.to_q(y), attn.to_k(x), attn.to_v(x)))
    return (later + attn.to_out(merge_heads(attend(q, k, v))),)


def cross_again(model, first, words, later, other_words):
    attn, y = model.attn, later.sin()
    q, k, v = map(split_heads, (attn.to_q(y), attn.to_k(words), attn.to_v(words)))
    return (later + attn.to_out(merge_heads(fused(q, k, v))),)


def one_projection_again(model, first, later):
    attn = model.attn
    q, _, _ = attn.qkv(later.sin()).chunk(3, -1)
    _, k, v = attn.qkv(first.sin()).chunk(3, -1)
    return (later + attn.out(merge_heads(fused(*map(split_heads, (q, k, v))))),)


def unfused_again(model, first, later):
    return attention_again(model, first, later, attend=unfused)


def joint_again(model, first, words, later, other_words):
    attn = model.attn
    (_, *image), (_, *text) = attn.project_image(first), attn.project_text(words)
    k, v = (split_heads(torch.cat(pair, 1)) for pair in zip(image, text, strict=True))
    q = split_heads(torch.cat([attn.to_q(later), attn.add_q(other_words)], 1))
    y = merge_heads(fused(q, k, v))
    length = later.shape[1]
    return later + attn.to_out(y[:, :length]), other_words + attn.add_out(y[:, length:])


def asked_again(model, first, words, later, other_words):
    attn = model.attn
    (_, *image), (_, *text) = attn.project_image(first), attn.project_text(words)
    k, v = (torch.cat(pair, 1) for pair in zip(image, text, strict=True))
    image = attn.to_out(fused(attn.to_q(later), k, v))
    return later + image, other_words + attn.add_out(fused(attn.add_q(other_words), k, v))


IMAGE, BOTH = ([tokens()], [LATER]), ([tokens(), WORDS], [LATER, WORDS.sin()])
NETWORKS = {
    "own": (lambda: Around(Own()), *IMAGE, own_again, 0, (2, TOKENS, WIDTH)),
    "self": (lambda: Around(Attention()), *IMAGE, attention_again, 2, (2, HEADS, TOKENS, 4)),
    "unfused": (
        lambda: Around(Attention(unfused)),
        *IMAGE,
        unfused_again,
        2,
        (2, HEADS, 4, TOKENS),
    ),
    "cross": (lambda: Around(Attention()), *BOTH, cross_again, 2, (2, HEADS, 5, 4)),
    "one_projection": (
        lambda: Around(OneProjection()),
        *IMAGE,
        one_projection_again,
        0,
        (2, HEADS, TOKENS, 4),
    ),
    "joint": (Joined, *BOTH, joint_again, 4, (2, HEADS, TOKENS + 5, 4)),
    "joint_in_two_operators": (
        lambda: Joined(Asked),
        *BOTH,
        asked_again,
        4,
        (2, TOKENS + 5, WIDTH),
    ),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


@each_network
def test_keep_keys_values_kept_shapes(network):
    make, first, *_, shape = NETWORKS[network]
    found = keep_keys_values(match_of(make(), *first))
    assert len(found.kept) == 2
    assert found.site.kept[0].shape == shape


@each_network
@pytest.mark.parametrize("action", [COMPUTE, STORE])
def test_keep_keys_values_computing_equals_the_original(network, action):
    make, first, *_ = NETWORKS[network]
    gm = captured(make(), *first)
    more = [action, *allocated_slots(kept(gm))]
    out = check_rewrite(gm, keep_all, first, rewrites=1, more_inputs=more)
    resolved = specialised(out, action)
    slots = allocated_slots(resolved)
    check_values(resolved(*first, *slots), gm(*first))
    change = operators(resolved)
    change.subtract(operators(gm))
    stores = {"aten.copy_.default": 2} if action == STORE else {}
    assert {name: n for name, n in change.items() if n} == stores


@each_network
def test_keep_keys_values_reuse_equals_an_independent_computation(network):
    make, first, later, again, *_ = NETWORKS[network]
    torch.manual_seed(0)
    model = make().requires_grad_(False)
    stored, reused, _ = trajectory(captured(model, *first), first, later)
    check_values(stored, model_outputs(model, first))
    expected = again(model, *first, *later)
    check_values(reused, expected)
    fresh = model_outputs(model, later)
    assert not all(torch.equal(a, b) for a, b in zip(expected, fresh, strict=True))


def model_outputs(model, inputs):
    result = model(*inputs)
    return result if isinstance(result, tuple) else (result,)


@each_network
def test_keep_keys_values_reuse_drops_the_projections_of_both_alone(network):
    make, first, *_, dropped, _ = NETWORKS[network]
    gm = captured(make(), *first)
    left, full = operators(specialised(kept(gm), REUSE)), operators(gm)
    assert full[LINEAR] - left[LINEAR] == dropped
    assert left[SDPA] == full[SDPA]
    assert left["aten.softmax.int"] == full["aten.softmax.int"]
    assert left["aten.copy_.default"] == 0


def test_keep_keys_values_reuse_keeps_the_norm_that_the_query_reads():
    gm = captured(Stack(1), tokens())
    left, full = operators(specialised(kept(gm), REUSE)), operators(gm)
    assert (full[LINEAR], full[SDPA], full["aten.layer_norm.default"]) == (5, 1, 1)
    assert (left[LINEAR], left[SDPA], left["aten.layer_norm.default"]) == (3, 1, 1)


def test_keep_keys_values_guard_resumes_as_the_specialised_graph_does():
    gm = captured(Joined(), tokens(), WORDS)
    guards = kept(gm)
    slots = allocated_slots(guards)
    guards(tokens(), WORDS, STORE, *slots)
    expected = guards(LATER, WORDS.sin(), REUSE, *slots)
    out = specialised(guards, REUSE)
    check_values(out(LATER, WORDS.sin(), *slots), expected)


@pytest.mark.parametrize("actions", list(product(Action, repeat=2)))
def test_keep_keys_values_dit_row_equals_the_guarded_graph(actions):
    gm, inputs = captured_dit()
    guards = kept(gm)
    names = input_names(guards)
    slots = [torch.full_like(slot, 0.5) for slot in allocated_slots(guards)]
    found = [slot.clone() for slot in slots]
    slot_names = [name for name in names if name.startswith("slot")]
    flowing = dict(zip(names, inputs, strict=False))
    given = {f"action_{k}": action for k, action in enumerate(actions)}
    named = {**flowing, **given, **dict(zip(slot_names, slots, strict=True))}
    expected = by_name(guards, named)
    named.update(zip(slot_names, found, strict=True))
    check_values(by_name(specialised(guards, *actions), named), expected)
    check_values(found, slots)


# ---- formats -----------------------------------------------------------------------------


@pytest.mark.parametrize("cache", LOSSY)
def test_keep_keys_values_format_is_what_reuse_reads_through(cache):
    torch.manual_seed(0)
    model = Around(Attention()).requires_grad_(False)
    gm, kept_as = captured(model, tokens()), FORMATS[cache]
    stored, reused, slots = trajectory(gm, [tokens()], [LATER], cache)
    check_values(stored, gm(tokens()))
    attn, x = model.attn, tokens().sin()
    q, k, v = map(split_heads, (attn.to_q(LATER.sin()), attn.to_k(x), attn.to_v(x)))
    middle = len(slots) // 2
    read = []
    for value, buffers in ((k, slots[:middle]), (v, slots[middle:])):
        again = [torch.zeros_like(buffer) for buffer in buffers]
        kept_as.write(value, again)
        for a, b in zip(buffers, again, strict=True):
            assert torch.equal(a.float(), b.float())
        read.append(kept_as.read(again, torch.float32))
    check_values(reused, [LATER + attn.to_out(merge_heads(fused(q, *read)))])


@pytest.mark.parametrize("cache", FORMATS)
@pytest.mark.parametrize("action", Action)
def test_keep_keys_values_metadata_stays_true(action, cache):
    out = specialised(kept(captured(Stack(1), tokens()), cache), action)
    check_metadata(out, [tokens(), *allocated_slots(out)])
