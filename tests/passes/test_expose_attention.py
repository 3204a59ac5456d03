"""expose_attention: what sites keep and how broad they look, as outputs of the graph."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from torch import nn
from torch.utils import _pytree as pytree

from dqar_fx.passes import (
    expose_attention,
    find_attention,
    hoist_conditioning,
    keep_keys_values,
)
from tests.helpers.models import make_pixart, make_sd3
from tests.helpers.rewrite_checks import (
    HEADS,
    WIDTH,
    Around,
    Attention,
    Bare,
    Joined,
    JointAttention,
    Stack,
    captured,
    captured_by_name,
    captured_dit,
    check_metadata,
    fused,
    merge_heads,
    operators,
    printed,
    rewritten,
    split_heads,
    tokens,
    unfused,
)

WORDS = tokens(2, 5, WIDTH)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


# ---- helpers -----------------------------------------------------------------------------


def expose_all(gm, kept=lambda match: match):
    """Expose every site of a graph."""
    return expose_attention(gm, [kept(match) for match in find_attention(gm)[0]])


def exposed(gm, inputs, **options):
    """Run a graph with every site exposed; its own outputs stay, bit for bit.

    Returns:
        Per site what it keeps, and per site its entropy.
    """
    num_sites = len(find_attention(gm)[0])
    before, out = printed(gm), rewritten(gm, partial(expose_all, **options))
    assert printed(gm) == before, "the pass reached into the original"
    expected, (*found,) = gm(*inputs), out(*inputs)
    for one, other in zip(found, expected, strict=False):
        assert torch.equal(one, other)
    check_metadata(out, inputs)
    added = found[len(expected) :]
    places = [i for i, value in enumerate(added) if value.dim() == 0]
    assert len(places) == num_sites
    assert places[-1] == len(added) - 1
    starts = [0, *(place + 1 for place in places)]
    kept = [added[a:b] for a, b in zip(starts, places, strict=False)]
    return kept, [added[place] for place in places]


def entropy_by_hand(query, key, *, mask=None, scale=None, is_causal=False, rows=None):
    """Entropy in numpy, one query after another; only those of ``rows`` if given."""
    query, key = (x.double().numpy() for x in (query, key))
    key = np.repeat(key, query.shape[-3] // key.shape[-3], -3)
    scores = query @ np.swapaxes(key, -1, -2)
    scores *= query.shape[-1] ** -0.5 if scale is None else scale
    visible = np.ones(scores.shape, bool)
    if mask is not None and mask.dtype == torch.bool:
        visible &= mask.numpy()
    elif mask is not None:
        scores = scores + mask.double().numpy()
    if is_causal:
        visible &= np.tril(np.ones(scores.shape[-2:], bool))
    found = []
    for place in np.ndindex(scores.shape[:-1]):
        if rows is not None and place[-1] not in rows:
            continue
        seen = scores[place][visible[place]]
        weights = np.exp(seen - seen.max())
        weights /= weights.sum()
        found.append(-(weights * np.log(np.maximum(weights, 1e-300))).sum())
    return np.mean(found) / math.log(scores.shape[-1])


class Attends(nn.Module):
    """Attention of heads with options of torch's own function."""

    def __init__(self, heads=HEADS, key_heads=HEADS, width=WIDTH, **options):
        super().__init__()
        self.heads, self.key_heads, self.options = heads, key_heads, options
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(width, n * 4) for n in (heads, key_heads, key_heads)
        )

    def project(self, x, source):
        q = self.to_q(x).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        k, v = (
            linear(source).unflatten(-1, (self.key_heads, 4)).transpose(1, 2)
            for linear in (self.to_k, self.to_v)
        )
        return q, k, v

    def forward(self, x, mask=None, source=None):
        q, k, v = self.project(x, x if source is None else source)
        options = self.options if mask is None else {**self.options, "attn_mask": mask}
        return F.scaled_dot_product_attention(q, k, v, **options)


def check_entropy(attends, x, mask=None, source=None, rows=None):
    """The entropy of one attention equals that of numpy; it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = attends

        def forward(self, x, *others):
            given = dict(zip(names, others, strict=True))
            return self.attn(x.sin(), **given).cos()

    given = {"mask": mask, "source": source}
    names = [name for name, value in given.items() if value is not None]
    inputs = [x, *(given[name] for name in names)]
    _, (found,) = exposed(captured(Model(), *inputs), inputs)
    with torch.no_grad():
        q, k, _ = attends.project(x.sin(), x.sin() if source is None else source)
    options = {n: o for n, o in attends.options.items() if n in ("scale", "is_causal")}
    expected = entropy_by_hand(q, k, mask=mask, rows=rows, **options)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.item(), expected, **CLOSE)
    return found.item()


def sharp(*shape):
    """Tokens that attend to few others."""
    return 3 * tokens(*shape)


# ---- entropy -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.1, 2.0, 0.0])
def test_expose_attention_fused_entropy_equals_numpy(scale):
    torch.manual_seed(0)
    check_entropy(Attends(scale=scale), sharp(2, 6, WIDTH))


MASKS = {
    "queries_and_keys": tokens(5, 6) > -0.3,
    "batch": tokens(2, 1, 5, 6) > -0.3,
    "heads": tokens(1, HEADS, 5, 6) > -0.3,
    "all": tokens(2, HEADS, 5, 6) > -0.3,
    "keys": tokens(2, 1, 1, 6) > -0.3,
    "keys_alone": tokens(1, 6) > -0.3,
    "nothing_hidden": torch.ones(5, 6, dtype=torch.bool),
}
for _mask in MASKS.values():
    _mask[..., 0] = True  # every query sees a key


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32, "bias"])
def test_expose_attention_masked_entropy_equals_numpy(name, kind):
    torch.manual_seed(0)
    mask = MASKS[name]
    if kind == torch.float32:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    if kind == "bias":
        mask = tokens(*mask.shape)
    check_entropy(Attends(), sharp(2, 5, WIDTH), mask, tokens(2, 6, WIDTH))


def test_expose_attention_hidden_keys_make_attention_narrower():
    torch.manual_seed(0)
    attends, x = Attends(), sharp(2, 6, WIDTH)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[:, 0] = True
    assert check_entropy(attends, x, mask) == 0
    assert check_entropy(attends, x) > 0.3


def test_expose_attention_query_that_sees_no_key_spoils_nothing():
    torch.manual_seed(0)
    attends, x = Attends(), sharp(2, 6, WIDTH)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    gm = captured(Around(attends_flat(attends)), x, mask)
    _, (found,) = exposed(gm, (x, mask))
    with torch.no_grad():
        assert gm(x, mask)[0].isfinite().all()
        q, k, _ = attends.project(x.sin(), x.sin())
    assert found.isfinite(), "the mean over queries is lost"
    seen = entropy_by_hand(q, k, rows=[0, 1, 3, 4, 5])
    assert seen * 5 / 6 - 1e-5 <= found <= seen + 1e-5


def attends_flat(attends):
    """The attention with its heads merged, as a module that takes a mask."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = attends

        def forward(self, x, mask):
            q, k, v = self.inner.project(x, x)
            return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    return Flat()


@pytest.mark.parametrize("num_keys", [6, 4, 9])
def test_expose_attention_causal_entropy_equals_numpy(num_keys):
    torch.manual_seed(0)
    source = None if num_keys == 6 else tokens(2, num_keys, WIDTH)
    check_entropy(Attends(is_causal=True), sharp(2, 6, WIDTH), source=source)


@pytest.mark.parametrize("key_heads", [1, 2])
def test_expose_attention_grouped_queries_entropy_equals_numpy(key_heads):
    torch.manual_seed(0)
    check_entropy(Attends(4, key_heads, enable_gqa=True), sharp(2, 6, WIDTH))


def test_expose_attention_cross_entropy_equals_numpy():
    torch.manual_seed(0)
    check_entropy(Attends(), sharp(2, 6, WIDTH), source=sharp(2, 11, WIDTH))


def test_expose_attention_one_key_has_no_entropy():
    torch.manual_seed(0)
    gm = captured(Around(Attention()), tokens(2, 3, WIDTH), tokens(2, 1, WIDTH))
    _, (found,) = exposed(gm, (tokens(2, 3, WIDTH), tokens(2, 1, WIDTH)))
    assert found == 0


def test_expose_attention_equal_keys_have_entropy_one():
    torch.manual_seed(0)
    x = torch.ones(2, 6, WIDTH)
    assert check_entropy(Attends(), x) == pytest.approx(1)


@pytest.mark.parametrize(("num_queries", "step"), [(256, 1), (257, 2), (512, 2), (700, 3)])
def test_expose_attention_of_many_queries_looks_at_some_evenly(num_queries, step):
    torch.manual_seed(0)
    rows = set(range(0, num_queries, step))
    x, source = sharp(1, num_queries, WIDTH), sharp(1, 4, WIDTH)
    check_entropy(Attends(), x, source=source, rows=rows)
    mask = tokens(num_queries, 4) > -0.3
    mask[:, 0] = True
    check_entropy(Attends(), x, mask, source, rows=rows)
    assert len(rows) <= 256


def test_expose_attention_causal_of_many_queries_hides_what_is_later():
    torch.manual_seed(0)
    rows = set(range(0, 300, 2))
    check_entropy(Attends(is_causal=True), sharp(1, 300, WIDTH), rows=rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_expose_attention_half_precision_entropy_is_float32(dtype):
    torch.manual_seed(0)
    model = Around(Attention()).to(dtype)
    x = sharp(2, 6, WIDTH).to(dtype)
    (kept,), (found,) = exposed(captured(model, x), (x,))
    with torch.no_grad():
        q, k = (split_heads(each(x.sin())) for each in (model.attn.to_q, model.attn.to_k))
    assert (kept[0].dtype, found.dtype) == (dtype, torch.float32)
    np.testing.assert_allclose(found.item(), entropy_by_hand(q, k), rtol=1e-4)


@pytest.mark.parametrize("attend", [fused, unfused])
def test_expose_attention_unfused_entropy_equals_the_fused_one(attend):
    torch.manual_seed(0)
    model = Around(Attention(attend))
    x = sharp(2, 6, WIDTH)
    _, (found,) = exposed(captured(model, x), (x,))
    with torch.no_grad():
        q, k = (split_heads(each(x.sin())) for each in (model.attn.to_q, model.attn.to_k))
    np.testing.assert_allclose(found.item(), entropy_by_hand(q, k), **CLOSE)


def turned(q, k, v):
    """Attention whose weights have the keys in the last dimension but one."""
    weights = (k @ q.mT * q.shape[-1] ** -0.5).softmax(-2)
    return weights.mT @ v


def test_expose_attention_entropy_is_over_the_dimension_of_the_softmax():
    torch.manual_seed(0)
    model = Around(Attention(turned))
    x, source = sharp(2, 6, WIDTH), sharp(2, 4, WIDTH)
    _, (found,) = exposed(captured(model, x, source), (x, source))
    with torch.no_grad():
        q, k = split_heads(model.attn.to_q(x.sin())), split_heads(model.attn.to_k(source))
    np.testing.assert_allclose(found.item(), entropy_by_hand(q, k), **CLOSE)


def test_expose_attention_joint_entropy_is_over_both_streams():
    torch.manual_seed(0)
    model, x = Joined().requires_grad_(False), sharp()
    (kept,), (found,) = exposed(captured(model, x, WORDS), (x, WORDS))
    with torch.no_grad():
        streams = model.attn.project_image(x), model.attn.project_text(WORDS)
        q, k, _ = (split_heads(torch.cat(pair, 1)) for pair in zip(*streams, strict=True))
        image, words = model.attn(x, WORDS)
    np.testing.assert_allclose(found.item(), entropy_by_hand(q, k), **CLOSE)
    assert torch.equal(kept[0], image)
    assert torch.equal(kept[1], words)


class TwoOperators(JointAttention):
    """Two streams that attend to both, each in an operator of its own."""

    def forward(self, x, text):
        (q, k, v), (ask, more_k, more_v) = self.asked(x, text)
        k, v = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
        return (
            self.to_out(merge_heads(fused(q, k, v))),
            self.add_out(merge_heads(fused(ask, k, v))),
        )

    def asked(self, x, text):
        streams = self.project_image(x), self.project_text(text)
        return (tuple(map(split_heads, stream)) for stream in streams)


def test_expose_attention_two_operators_of_a_site_count_alike():
    torch.manual_seed(0)
    model, x = Joined(TwoOperators), sharp()
    _, (found,) = exposed(captured(model, x, WORDS), (x, WORDS))
    with torch.no_grad():
        (q, k, _), (ask, more, _) = model.attn.asked(x, WORDS)
    keys = torch.cat([k, more], 2)
    both = [entropy_by_hand(each, keys) for each in (q, ask)]
    np.testing.assert_allclose(found.item(), np.mean(both), **CLOSE)


# ---- outputs -----------------------------------------------------------------------------


def test_expose_attention_kept_outputs_are_those_of_the_modules():
    torch.manual_seed(0)
    model, x = Stack(3), tokens()
    seen, handles = [], []
    for block in model.blocks:
        hook = lambda _module, _args, output: seen.append(output)  # noqa: E731
        handles.append(block.attn.register_forward_hook(hook))
    kept, entropy = exposed(captured(model, x), (x,))
    seen.clear()
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    assert len(kept) == len(entropy) == len(seen) == 3
    for (found,), expected in zip(kept, seen, strict=True):
        assert torch.equal(found, expected)


def test_expose_attention_keys_and_values_are_given_where_they_are_kept():
    torch.manual_seed(0)
    model, x = Around(Attention()), tokens()
    (kept,), _ = exposed(captured(model, x), (x,), kept=keep_keys_values)
    with torch.no_grad():
        expected = [split_heads(each(x.sin())) for each in (model.attn.to_k, model.attn.to_v)]
    for found, one in zip(kept, expected, strict=True):
        assert torch.equal(found, one)


def test_expose_attention_some_sites_leave_the_others_alone():
    x = tokens()
    gm = captured(Stack(3), x)
    out = rewritten(gm, lambda own: expose_attention(own, find_attention(own)[0][1:2]))
    found, whole = out(x), rewritten(gm, expose_all)(x)
    assert len(found) == 3
    assert torch.equal(found[0], gm(x)[0])
    assert torch.equal(found[1], whole[3])
    assert torch.equal(found[2], whole[4])


def test_expose_attention_no_sites_changes_nothing():
    gm = captured(Stack(1), tokens())
    before = printed(gm)
    assert expose_attention(gm, []) == 0
    assert printed(gm) == before


def test_expose_attention_counts_the_outputs_that_it_adds():
    gm = captured(Joined(), tokens(), WORDS)
    assert expose_all(gm) == 3  # two outputs and an entropy
    gm = captured(Stack(3), tokens())
    assert expose_all(gm, kept=keep_keys_values) == 9


def test_expose_attention_computes_no_weights_where_they_are_there_already():
    gm = captured(Around(Attention(unfused)), tokens())
    change = operators(rewritten(gm, expose_all))
    change.subtract(operators(gm))
    assert change["aten.matmul.default"] == change["aten.softmax.int"] == 0
    assert change["aten.special_entr.default"] == 1


def test_expose_attention_smallest_site_rewritten():
    out = rewritten(captured(Around(Bare()), tokens()), expose_all)
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    neg: "f32[2, 3, 8]" = aten.neg.default(sin)
    scaled_dot_product_attention: "f32[2, 3, 8]" =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, scaled_dot_product_attention)
    arange: "i64[3]" = aten.arange.start_step(0, 3, device = device(type='cpu'),
        pin_memory = False)
    index_select: "f32[2, 3, 8]" = aten.index_select.default(sin, -2, arange)
    transpose: "f32[2, 8, 3]" = aten.transpose.int(neg, -2, -1)
    expand: "f32[2, 3, 8]" = aten.expand.default(index_select, [2, 3, 8])
    view: "f32[2, 3, 8]" = aten.view.default(expand, [2, 3, 8])
    expand_1: "f32[2, 8, 3]" = aten.expand.default(transpose, [2, 8, 3])
    view_1: "f32[2, 8, 3]" = aten.view.default(expand_1, [2, 8, 3])
    bmm: "f32[2, 3, 3]" = aten.bmm.default(view, view_1)
    _unsafe_view: "f32[2, 3, 3]" = aten._unsafe_view.default(bmm, [2, 3, 3])
    mul: "f32[2, 3, 3]" = aten.mul.Tensor(_unsafe_view, 0.3535533905932738)
    _softmax: "f32[2, 3, 3]" = aten._softmax.default(mul, -1, False)
    special_entr: "f32[2, 3, 3]" = aten.special_entr.default(_softmax)
    sum_1: "f32[2, 3]" = aten.sum.dim_IntList(special_entr, [-1])
    detach: "f32[2, 3]" = aten.detach.default(sum_1)
    ne: "b8[2, 3]" = aten.ne.Tensor(detach, detach)
    logical_not_: "b8[2, 3]" = aten.logical_not_.default(ne)
    sum_2: "i64[]" = aten.sum.dim_IntList(logical_not_, None)
    nansum: "f32[]" = aten.nansum.default(sum_1)
    div: "f32[]" = aten.div.Tensor(nansum, sum_2)
    div_1: "f32[]" = aten.div.Tensor(div, 1.0986122886681098)
    stack: "f32[1]" = aten.stack.default([div_1])
    mean: "f32[]" = aten.mean.default(stack)
    return (add, scaled_dot_product_attention, mean)""",
    )


# ---- models ------------------------------------------------------------------------------


def test_expose_attention_dit_sites_all_given():
    gm, inputs = captured_dit()
    kept, entropy = exposed(gm, inputs)
    assert len(kept) == len(entropy) == 2
    assert all(0 < value < 1 for value in entropy)


@pytest.mark.parametrize("make", [make_pixart, make_sd3])
def test_expose_attention_hoisted_conditioning_entropies_equal_those_of_the_model(make):
    case = make()
    if "encoder_attention_mask" in case.given:
        case.given["encoder_attention_mask"][1, 3:] = 0
    inputs = case.inputs(0)
    original, expected = F.scaled_dot_product_attention, []

    def attend(query, key, value, attn_mask=None, **options):
        expected.append(entropy_by_hand(query, key, mask=attn_mask))
        return original(query, key, value, attn_mask=attn_mask, **options)

    gm = rewritten(captured_by_name(case.model, **inputs), hoist_conditioning)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", attend)
        case.model(**inputs)
    _, found = exposed(gm, pytree.tree_leaves(inputs))
    np.testing.assert_allclose([x.item() for x in found], expected, rtol=1e-4)
