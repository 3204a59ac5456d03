"""hoist_conditioning: what does not read the latent leaves the step, in stages."""

from collections import Counter

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from dqar_fx.passes import hoist_conditioning
from dqar_fx.passes.support.blocks import block_of, find_blocks, find_runs, find_siblings
from dqar_fx.passes.support.conditioning_nodes import find_latents
from dqar_fx.passes.support.graphs import is_computing
from tests.helpers.rewrite_checks import (
    WIDTH,
    Attention,
    JointAttention,
    Stack,
    captured,
    captured_by_name,
    captured_dit,
    check_rewrite,
    check_twice,
    operators,
    printed,
    rewritten,
    tokens,
)


class Conditioned(nn.Module):
    """One value for each set of conditioning inputs."""

    def forward(self, hidden_states, timestep, class_labels, text):
        constant = torch.full([WIDTH], 0.5)
        label, words = class_labels.sin(), text.cos()
        both = label * words
        time = timestep.exp() + label
        return hidden_states * time + both.neg() + constant + words


class Modulated(nn.Module):
    """Joint attention block: both streams are scaled by the timestep."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(WIDTH, WIDTH)
        self.attn = JointAttention()

    def forward(self, x, text, time):
        scale = self.scale(time)
        image, words = self.attn(x * scale, text * scale)
        return x + image, text + words


class JointModel(nn.Module):
    """Equal joint blocks: the text enters the first without having met the latent."""

    def __init__(self, depth=2):
        super().__init__()
        self.blocks = nn.ModuleList(Modulated() for _ in range(depth))
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states, text, timestep):
        text = self.embed(text)
        for block in self.blocks:
            hidden_states, text = block(hidden_states, text, timestep)
        return hidden_states, text


class CrossModel(nn.Module):
    """Blocks that attend to the same text: its keys and values are conditioning."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention()}) for _ in range(2))

    def forward(self, hidden_states, text):
        for block in self.blocks:
            hidden_states = hidden_states + block["attn"](hidden_states, text)
        return hidden_states


NAMED = {
    "hidden_states": tokens(2, 3, WIDTH),
    "timestep": tokens(WIDTH),
    "class_labels": tokens(3, 1),
    "text": tokens(2, 3, WIDTH),
}
JOINT = (tokens(2, 3, WIDTH), tokens(2, 5, WIDTH), tokens(WIDTH))


def conditioned():
    return captured_by_name(Conditioned(), **NAMED)


def stages_of(gm):
    """Operators of each stage, in order."""
    calls = gm.graph.find_nodes(op="call_module", sort=True)
    assert [call.meta["stage"] for call in calls] == list(range(len(calls)))
    return [Counter(operators(gm.get_submodule(call.target))) for call in calls]


def origins(gm):
    """For each stage the names of the graph's inputs that it depends on."""
    depends = {n: {n.name} for n in gm.graph.find_nodes(op="placeholder")}
    for node in gm.graph.nodes:
        sources = (depends.get(source, set()) for source in node.all_input_nodes)
        depends.setdefault(node, set().union(*sources))
    calls = gm.graph.find_nodes(op="call_module", sort=True)
    return [depends[call] for call in calls]


def test_hoist_conditioning_stage_for_each_set_of_inputs():
    inputs = list(NAMED.values())
    gm = conditioned()
    assert [n.name for n in gm.graph.find_nodes(op="placeholder")] == list(NAMED)
    out = check_rewrite(gm, hoist_conditioning, inputs, rewrites=7)
    assert origins(out) == [
        set(),
        {"class_labels"},
        {"text"},
        {"class_labels", "text"},
        {"timestep", "class_labels"},
    ]
    assert stages_of(out) == [
        {"aten.full.default": 1},
        {"aten.sin.default": 1},
        {"aten.cos.default": 1},
        {"aten.mul.Tensor": 1, "aten.neg.default": 1},
        {"aten.exp.default": 1, "aten.add.Tensor": 1},
    ]
    assert operators(out)["aten.mul.Tensor"] == 1
    assert operators(out)["aten.add.Tensor"] == 3


def test_hoist_conditioning_timestep_alone_and_with_labels_share_the_last_stage():
    class Timed(nn.Module):
        def forward(self, hidden_states, timestep, class_labels):
            time = timestep.exp()
            return hidden_states * time, hidden_states + time.sin() * class_labels

    named = {name: NAMED[name] for name in ("hidden_states", "timestep", "class_labels")}
    gm = captured_by_name(Timed(), **named)
    out = check_rewrite(gm, hoist_conditioning, list(named.values()), rewrites=3)
    assert origins(out) == [{"timestep", "class_labels"}]


def test_hoist_conditioning_smallest_case_printed():
    class Small(nn.Module):
        def forward(self, x, timestep):
            return x * timestep.sin()

    inputs = tokens(), tokens(WIDTH)
    ops = {"aten.sin.default": -1, "call_module": 1, "<built-in function getitem>": 1}
    gm = captured(Small(), *inputs)
    out = check_rewrite(gm, hoist_conditioning, inputs, rewrites=1, ops=ops)
    assert_expected_inline(
        printed(out),
        """\
def forward(self, x: "f32[2, 3, 8]", timestep: "f32[8]"):
    conditioning_0 = self.conditioning_0(timestep)
    getitem: "f32[8]" = conditioning_0[0]
    mul: "f32[2, 3, 8]" = aten.mul.Tensor(x, getitem)
    return (mul,)
class conditioning_0(torch.nn.Module):
    def forward(self, timestep: "f32[8]"):
        sin: "f32[8]" = aten.sin.default(timestep)
        return (sin,)""",
    )


def test_hoist_conditioning_joint_first_text_stream_stays_in_its_block():
    gm = captured(JointModel(), *JOINT)
    out = check_rewrite(gm, hoist_conditioning, JOINT, rewrites=3)
    assert stages_of(out) == [{"aten.linear.default": 1}, {"aten.linear.default": 2}]
    assert origins(out) == [{"text"}, {"timestep"}]


def test_hoist_conditioning_joint_blocks_stay_equal():
    out = rewritten(captured(JointModel(3), *JOINT), hoist_conditioning)
    blocks = find_blocks(out.graph.nodes)
    assert blocks == ("blocks.0", "blocks.1", "blocks.2")
    (group,) = find_siblings(find_runs(out.graph.nodes, blocks))
    assert len(group) == 3


def test_hoist_conditioning_text_of_a_lone_block_is_hoisted():
    gm = captured(JointModel(1), *JOINT)
    out = check_rewrite(gm, hoist_conditioning, JOINT, rewrites=6)
    assert origins(out) == [{"text"}, {"timestep", "text"}]


def test_hoist_conditioning_cross_keys_and_values_leave_the_step():
    inputs = tokens(), tokens(2, 5, WIDTH)
    gm = captured(CrossModel(), *inputs)
    out = check_rewrite(gm, hoist_conditioning, inputs, rewrites=2 * 2 * 3)
    assert operators(gm)["aten.linear.default"] - operators(out)["aten.linear.default"] == 4


def test_hoist_conditioning_dit_embedders_and_modulations_leave_the_step():
    gm, inputs = captured_dit()
    before, after = (
        sum(map(is_computing, graph.nodes))
        for graph in (gm.graph, rewritten(gm, hoist_conditioning).graph)
    )
    out = check_rewrite(gm, hoist_conditioning, inputs, rewrites=before - after)
    left = operators(out)
    assert left["aten.linear.default"] == 2 * 6 + 1
    assert (left["aten.sin.default"], left["aten.embedding.default"]) == (0, 0)
    assert "timestep" in origins(out)[-1]
    assert not any("timestep" in reads for reads in origins(out)[:-1])
    assert not any("hidden_states" in reads for reads in origins(out))


def test_hoist_conditioning_dit_sinusoids_computed_once():
    gm, _ = captured_dit()
    assert operators(gm)["aten.sin.default"] == 3
    stages = stages_of(rewritten(gm, hoist_conditioning))
    assert [stage["aten.sin.default"] for stage in stages if "aten.sin.default" in stage] == [
        1
    ]


def test_hoist_conditioning_several_users_all_read_the_stage():
    class Shared(nn.Module):
        def forward(self, x, timestep):
            time = timestep.sin()
            return x * time, x + time

    inputs = tokens(), tokens(WIDTH)
    out = check_rewrite(captured(Shared(), *inputs), hoist_conditioning, inputs, rewrites=1)
    (item,) = out.graph.find_nodes(op="call_module")[0].users
    assert len(item.users) == 2


def test_hoist_conditioning_output_without_latent_is_hoisted():
    class Aside(nn.Module):
        def forward(self, x, timestep):
            return x.sin(), timestep.sin()

    inputs = tokens(), tokens(WIDTH)
    check_rewrite(captured(Aside(), *inputs), hoist_conditioning, inputs, rewrites=1)


def test_hoist_conditioning_no_conditioning_left_alone():
    check_rewrite(captured(Stack(2), tokens()), hoist_conditioning, [tokens()], rewrites=0)


def test_hoist_conditioning_no_floating_point_input_left_alone():
    class Integers(nn.Module):
        def forward(self, ids):
            return ids + 1

    ids = torch.arange(3)
    check_rewrite(captured(Integers(), ids), hoist_conditioning, [ids], rewrites=0)


@pytest.mark.parametrize(
    ("names", "latent"),
    [
        (["timestep", "hidden_states"], "hidden_states"),
        (["timestep", "sample"], "sample"),
        (["x", "hidden_states"], "hidden_states"),
        (["noise", "timestep"], "noise"),
    ],
)
def test_find_latent_by_name_else_the_first(names, latent):
    graph = torch.fx.Graph()
    for name in names:
        graph.placeholder(name).meta["val"] = tokens()
    graph.output(())
    assert [n.name for n in find_latents(torch.fx.GraphModule({}, graph))] == [latent]


def test_find_blocks_of_a_stack_in_order():
    gm = captured(Stack(2), tokens())
    assert find_blocks(gm.graph.nodes) == ("blocks.0", "blocks.1")
    owners = [path for path, _ in find_runs(gm.graph.nodes, ("blocks.0", "blocks.1"))]
    assert owners == ["", "blocks.0", "blocks.1", ""]


def test_find_blocks_without_lists_finds_none():
    gm = captured(Conditioned(), *NAMED.values())
    assert find_blocks(gm.graph.nodes) == ()
    assert {block_of(node, ()) for node in gm.graph.nodes} == {""}


def test_find_siblings_blocks_of_other_operators_apart():
    class Uneven(Stack):
        def forward(self, x):
            first, second, third = self.blocks
            return third(second(first(x)).sin())

    model = Uneven(3)
    model.blocks[1].norm = nn.Identity()
    gm = captured(model, tokens())
    groups = find_siblings(find_runs(gm.graph.nodes, find_blocks(gm.graph.nodes)))
    assert [len(group) for group in groups] == [2, 1]


class Timed(nn.Module):
    def forward(self, x, timestep):
        return x * timestep.sin()


def test_hoist_conditioning_twice_finds_nothing():
    check_twice(captured(Timed(), tokens(), tokens(8)), hoist_conditioning)


class Noisy(nn.Module):
    def forward(self, x, timestep):
        return x + torch.randn_like(timestep)


def test_hoist_conditioning_random_operators_left_alone():
    assert hoist_conditioning(captured(Noisy(), tokens(), tokens(8))) == 0


# ---- quantised weights -------------------------------------------------------------------


class Packed(nn.Linear):
    """A linear whose weight is unpacked from bytes at each call."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)
        bytes = torch.arange(WIDTH * WIDTH).reshape(WIDTH, WIDTH) % 7 - 3
        self.weight = nn.Parameter(bytes.to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) / 4, self.bias)


class PackedModel(nn.Module):
    """Quantised weights that serve the step, one stage, or several."""

    def __init__(self, *, shares):
        super().__init__()
        self.of_step, self.of_words, self.of_all = (Packed() for _ in range(3))
        self.shares = shares

    def forward(self, hidden_states, timestep, text):
        words = self.of_all(self.of_words(text))
        time = self.of_all(timestep.exp())
        scaled = self.of_step(hidden_states) * time + words
        if not self.shares:
            return scaled
        weight = self.of_all.weight.float() / 4
        return scaled @ weight + text @ weight


@pytest.mark.parametrize("shares", [False, True])
def test_hoist_packed_weights_are_unpacked_where_they_are_read(shares):
    names = ("hidden_states", "timestep", "text")
    given = {name: NAMED[name] for name in names}
    gm = captured_by_name(PackedModel(shares=shares), **given)
    hoisted = rewritten(gm, hoist_conditioning)
    assert torch.equal(hoisted(*given.values())[0], gm(*given.values())[0])
    words, time = stages_of(hoisted)  # none of constants, which would be the weights
    of_words, of_time = 2, 1
    assert words["aten.linear.default"] == words["aten.div.Tensor"] == of_words
    assert time["aten.linear.default"] == time["aten.div.Tensor"] == of_time
    in_step = Counter(operators(hoisted))
    assert in_step["aten.div.Tensor"] == 1 + shares
    assert in_step["aten.matmul.default"] == 2 * shares, "what shares a weight with the step"
