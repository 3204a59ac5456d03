"""find_attention finds sites, tells their kind, and says why a candidate is none."""

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import find_attention
from tests.helpers.rewrite_checks import (
    TOKENS,
    WIDTH,
    Around,
    Attention,
    Bare,
    Joined,
    JointAttention,
    Stack,
    aten,
    captured,
    captured_dit,
    fused,
    operators,
    printed,
    projections,
    tokens,
    unfused,
)


class Rotary(nn.Module):
    """Self attention whose queries and keys are turned by tables that the caller gives."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = projections()

    def forward(self, x, cos, sin):
        q, k = (turn(project(x), cos, sin) for project in (self.to_q, self.to_k))
        return self.to_out(fused(q, k, self.to_v(x)))


def turn(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class Single(nn.Module):
    """A single-stream block of Flux: both streams in one tensor, joined before it."""

    def __init__(self):
        super().__init__()
        self.attn = Attention()

    def forward(self, x, text):
        return self.attn(torch.cat([text, x], 1))


class ImageOnly(nn.Module):
    """Joint attention of which only the image's output is read."""

    def __init__(self):
        super().__init__()
        self.attn = JointAttention()

    def forward(self, x, text):
        return x + self.attn(x, text)[0]


class Separate(JointAttention):
    """Joint attention in two operators: each stream asks both of them."""

    def forward(self, x, text):
        (q, k, v), (ask, more_k, more_v) = self.project_image(x), self.project_text(text)
        k, v = torch.cat([k, more_k], 1), torch.cat([v, more_v], 1)
        return self.to_out(fused(q, k, v)), self.add_out(fused(ask, k, v))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()

    def forward(self, x):
        return self.attn(self.attn(x))


class PassesOn(nn.Module):
    """Gives its attention, and a value that does not descend from it."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = projections()

    def forward(self, x):
        normed = F.layer_norm(x, [WIDTH])
        values = self.to_v(normed)
        return self.to_out(fused(self.to_q(normed), self.to_k(normed), values)), values


class ReadsBoth(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = PassesOn()

    def forward(self, x):
        y, values = self.attn(x)
        return y.sin() + values.cos()


class Wrapped(nn.Module):
    """A function in a module of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def squared(x):
    square = x[..., :TOKENS]
    return torch.matmul(square, square)


def gram(weights):
    return torch.matmul(weights, weights).sum(-1, keepdim=True)


class Scores(nn.Module):
    """Unfused attention with a mask, in another spelling of the products."""

    def forward(self, q, k, v, mask):
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), beta=1.0, alpha=0.5)
        return torch.bmm(scores.softmax(-1, dtype=torch.float32).to(v.dtype), v)


def sites_of(model, *inputs):
    gm = captured(model, *inputs)
    matches, near_misses = find_attention(gm)
    assert near_misses == []
    return [match.site for match in matches]


def near_miss_of(model, *inputs):
    matches, (near_miss,) = find_attention(captured(model, *inputs))
    assert matches == []
    return near_miss


TABLES = (tokens(TOKENS, WIDTH), tokens(TOKENS, WIDTH))
WORDS = tokens(2, 5, WIDTH)


@pytest.mark.parametrize(
    ("model", "inputs", "kind"),
    [
        (Around(Attention()), [], "self"),
        (Around(Attention(unfused)), [], "self"),
        (Around(Rotary()), TABLES, "self"),
        (Single(), [WORDS], "self"),
        (Around(Attention()), [WORDS], "cross"),
        (Around(Attention(unfused)), [WORDS], "cross"),
        (Joined(), [WORDS], "joint"),
        (Joined(Separate), [WORDS], "joint"),
        (ImageOnly(), [WORDS], "joint"),
    ],
    ids=[
        "self",
        "self_unfused",
        "rotary",
        "single_stream",
        "cross",
        "cross_unfused",
        "joint",
        "joint_in_two_operators",
        "joint_with_one_output_read",
    ],
)
def test_attention_kind_by_origin_of_queries_and_keys(model, inputs, kind):
    (site,) = sites_of(model, tokens(), *inputs)
    assert site.kind == kind
    assert site.path == "attn"


def test_attention_kind_hoisted_text_is_no_origin_but_streams_are():
    """Keys from a parameter alone do not make an attention cross attention."""

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(tokens(1, TOKENS, WIDTH))

        def forward(self, x):
            return fused(x + self.table, x - self.table, x)

    (site,) = sites_of(Around(Learned()), tokens())
    assert site.kind == "self"


def test_find_attention_self_site_described():
    gm = captured(Around(Bare()), tokens())
    (match,), near_misses = find_attention(gm)
    assert near_misses == []
    assert [node.name for node in match.inputs] == ["sin"]
    assert [node.name for node in match.body] == ["neg", "scaled_dot_product_attention"]
    assert match.outputs == match.body[-1:]
    assert match.site.source.startswith("rewrite_checks.py:")
    assert_expected_inline(str(match.site), """  0  attn  self, fused, keeps [2, 3, 8]""")
    assert_expected_inline(
        printed(gm),
        """\
def forward(self, x: "f32[2, 3, 8]"):
    sin: "f32[2, 3, 8]" = aten.sin.default(x)
    neg: "f32[2, 3, 8]" = aten.neg.default(sin)
    scaled_dot_product_attention: "f32[2, 3, 8]" =
        aten.scaled_dot_product_attention.default(sin, neg, sin)
    add: "f32[2, 3, 8]" = aten.add.Tensor(x, scaled_dot_product_attention)
    return (add,)""",
    )


def test_find_attention_parameters_are_inputs_and_come_last():
    (match,), _ = find_attention(captured(Around(Attention()), tokens(), WORDS))
    names = [node.name for node in match.inputs]
    assert names[:2] == ["sin", "others_0"]
    assert [name.removeprefix("attn_to_") for name in names[2:]] == [
        "q_weight",
        "k_weight",
        "v_weight",
        "out_weight",
    ]


def test_find_attention_joint_has_two_outputs_with_their_shapes():
    (site,) = sites_of(Joined(), tokens(), WORDS)
    assert [spec.shape for spec in site.kept] == [(2, TOKENS, WIDTH), (2, 5, WIDTH)]


def test_find_attention_unfused_variant_told():
    (site,) = sites_of(Around(Attention(unfused)), tokens())
    assert site.variant == "matmul_softmax"


def operator_of(attend):
    """Names of an operator's result, queries, keys, values and weights."""
    gm = captured(Around(Wrapped(lambda x: attend(x.neg(), x.cos(), x.exp()))), tokens())
    (match,), _ = find_attention(gm)
    (operator,) = match.operators
    parts = (operator.result, operator.query, operator.key, operator.value, operator.weights)
    return [part and part.name for part in parts]


def test_find_attention_fused_operator_names_its_parts():
    expected = ["scaled_dot_product_attention", "neg", "cos", "exp", None]
    assert operator_of(fused) == expected


def test_find_attention_unfused_operator_names_its_parts():
    expected = ["matmul_1", "neg", "transpose", "exp", "softmax"]
    assert operator_of(unfused) == expected


def test_find_attention_values_on_the_left_of_the_weights_are_told():
    def turned(q, k, v):
        return (v.mT @ (q @ k.mT).softmax(-1).mT).mT

    _, query, key, value, weights = operator_of(turned)
    assert (query, key, value, weights) == ("neg", "m_t_1", "m_t", "softmax")


def test_find_attention_outputs_are_kept_unless_told_otherwise():
    (match,), _ = find_attention(captured(Joined(), tokens(), WORDS))
    assert match.kept == match.outputs
    assert len(match.kept) == 2


def test_find_attention_unfused_with_mask_and_casts_found():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Scores()

        def forward(self, x, mask):
            return x + self.attn(x.sin(), x.cos(), x, mask)

    (site,) = sites_of(Masked(), tokens().half(), tokens(2, TOKENS, TOKENS).half())
    assert (site.kind, site.variant) == ("cross", "matmul_softmax")


def test_find_attention_module_called_twice_numbered():
    first, second = sites_of(Twice(), tokens())
    assert (first.path, second.path) == ("attn", "attn@1")
    assert (first.index, second.index) == (0, 1)


def test_find_attention_two_operators_of_one_module_are_one_site():
    (site,) = sites_of(Around(Wrapped(lambda x: fused(x, x, x) + fused(x, -x, x))), tokens())
    assert site.path == "attn"


def test_find_attention_stack_in_execution_order():
    sites = sites_of(Stack(3), tokens())
    assert [site.path for site in sites] == [f"blocks.{i}.attn" for i in range(3)]
    assert [site.index for site in sites] == [0, 1, 2]


def test_find_attention_several_users_one_output():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention()

        def forward(self, x):
            y = self.attn(x)
            return y.sin() + y.cos(), y

    (match,), _ = find_attention(captured(Read(), tokens()))
    assert len(match.outputs) == 1
    assert len(match.outputs[0].users) == 3


def test_find_attention_value_passed_on_stays_outside():
    gm = captured(ReadsBoth(), tokens())
    (match,), _ = find_attention(gm)
    assert len(match.site.kept) == 1
    body = [str(node.target) for node in match.body]
    assert "aten.layer_norm.default" not in body
    assert body.count("aten.linear.default") == 3
    assert operators(gm)["aten.linear.default"] == 4


def test_find_attention_dit_every_layer_found():
    matches, near_misses = find_attention(captured_dit()[0])
    assert near_misses == []
    assert [match.site.path for match in matches] == [
        "transformer_blocks.0.attn1",
        "transformer_blocks.1.attn1",
    ]
    assert {match.site.kept[0].shape for match in matches} == {(2, 36, 60)}


def test_find_attention_twice_gives_equal_sites():
    gm, _ = captured_dit()
    assert find_attention(gm) == find_attention(gm)


def test_find_attention_leaves_the_graph_alone():
    gm = captured(Around(Attention()), tokens())
    before = printed(gm)
    find_attention(gm)
    assert printed(gm) == before


def test_find_attention_without_attention_finds_nothing():
    assert find_attention(captured(nn.Linear(WIDTH, WIDTH), tokens())) == ([], [])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Bare(), "attention belongs to the root module"),
        (Around(Wrapped(lambda x: x * x.softmax(-1))), "not a product of queries and keys"),
        (
            Around(Wrapped(lambda x: (x @ x.mT.neg()).softmax(-1).sum(-1, keepdim=True))),
            "weights are not multiplied with values",
        ),
        (
            Around(Wrapped(lambda x: squared(x).softmax(-1) @ x)),
            "product of a tensor with itself",
        ),
        (
            Around(Wrapped(lambda x: gram((x @ x.mT.neg()).softmax(-1)))),
            "weights that are multiplied with themselves",
        ),
        (
            Around(Wrapped(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1))),
            "active dropout is random",
        ),
    ],
    ids=["root", "gate", "no_values", "itself", "weights", "dropout"],
)
def test_find_attention_near_miss_has_reason_and_node(model, reason):
    near_miss = near_miss_of(model, tokens())
    assert reason in near_miss.reason
    assert str(near_miss) == f"{near_miss.reason} (at %{near_miss.node.name})"
    assert near_miss.node.target in {
        aten.scaled_dot_product_attention.default,
        aten.softmax.int,
        aten.matmul.default,
    }


def test_find_attention_unread_attention_is_a_near_miss():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Bare()

        def forward(self, x):
            return x, self.attn(x)

    gm = captured(Unread(), tokens())
    gm.graph.output_node().args = ((gm.graph.find_nodes(op="placeholder")[0],),)
    matches, (near_miss,) = find_attention(gm)
    assert matches == []
    assert near_miss.reason == "nothing outside of attn reads its attention"


def test_find_attention_near_miss_does_not_hide_a_site():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Bare()

        def forward(self, x):
            return self.attn(fused(x, x, x)) * x.softmax(-1)

    matches, near_misses = find_attention(captured(Mixed(), tokens()))
    assert [match.site.path for match in matches] == ["attn"]
    assert len(near_misses) == 2


class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.q = Attention(), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.attn(x)
        return x + fused(self.q(x), x, x)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Inline() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_find_attention_sites_do_not_overlap():
    matches, _ = find_attention(captured(Nested(), tokens()))
    nodes = [node for match in matches for node in match.body]
    assert len(nodes) == len(set(nodes))


def noisy(q, k, v):
    return F.dropout((q @ k.mT).softmax(-1), 0.1, training=True) @ v


def test_find_attention_unfused_with_active_dropout_is_a_near_miss():
    matches, near_misses = find_attention(captured(Around(Attention(noisy)), tokens()))
    assert matches == []
    assert "dropout" in near_misses[0].reason
