"""keep_keys_values on networks: what reuse leaves of each, and its values."""

from itertools import product

import pytest
import torch
from torch import nn

from dqar_fx.passes import keep_keys_values
from dqar_fx.schedule.action import Action
from tests.helpers.keys_values_guards import (
    COMPUTE,
    LATER,
    REUSE,
    SDPA,
    STORE,
    WORDS,
    Own,
    by_name,
    input_names,
    keep_all,
    kept,
    match_of,
    specialised,
    trajectory,
)
from tests.helpers.rewrite_checks import (
    HEADS,
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
    check_rewrite,
    check_values,
    fused,
    merge_heads,
    operators,
    split_heads,
    tokens,
    unfused,
)

LINEAR = "aten.linear.default"


# ---- networks ----------------------------------------------------------------------------


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


# ---- each again --------------------------------------------------------------------------


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
