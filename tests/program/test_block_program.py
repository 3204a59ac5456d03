"""Blocks captured one by one: against hooks on the untouched model, and the whole graph."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.block_models import (
    Blocks,
    Cache,
    WritingBlock,
    call_copies,
    call_halving,
    call_twice,
    call_varying,
    call_with_cache,
    inputs_at,
)
from tests.helpers.hook_oracle import Oracle, ResidualOracle
from tests.helpers.models import Case, make_dit, make_flux, make_sd3, seeded, settled

STEPS = 5
SDPA = torch.ops.aten.scaled_dot_product_attention.default


def make_wan():
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    given = {"encoder_hidden_states": seeded(2, 6, 16)}
    return Case(settled(model), (2, 4, 2, 8, 8), given)


MODELS = {"dit": make_dit, "flux": make_flux, "sd3": make_sd3, "wan": make_wan}
every_model = pytest.mark.parametrize("name", MODELS)


class KeptOutputs:
    """Runs a model with the outputs of some modules kept, as a table says."""

    def __init__(self, model, table, *, residual=False):
        self.model, self.table, self.residual = model, table, residual
        self.kept, self.base = {}, {}

    @torch.no_grad()
    def __call__(self, step, **inputs):
        handles = []
        for site, path in enumerate(self.table.sites):
            module = self.model.get_submodule(path)
            handles.append(module.register_forward_hook(self.hook(site, step)))
        try:
            result = self.model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        return result if isinstance(result, torch.Tensor) else result.sample

    def hook(self, site, step):
        action = self.table.actions[step, site]

        def replace(_module, given, output):
            several = isinstance(output, tuple)
            value = output[0] if several else output
            base = given[0] if self.residual else 0.0
            if action == 1:
                self.kept[site] = value - base if self.residual else output
            if action != 2:
                return output
            if not self.residual:
                return self.kept[site]
            return (base + self.kept[site], *output[1:])

        return replace


def plain(denoiser, inputs):
    result = denoiser(**inputs)
    return result if isinstance(result, torch.Tensor) else result.sample


# ---- the same as the whole graph and as hooks --------------------------------------------


class GivingBlock(nn.Module):
    """Attention, and an embedding of its own that it gives beside."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embed = nn.Linear(8, 8)

    def forward(self, x, emb):
        emb = torch.tanh(self.embed(emb))
        x = x * emb[:, None]
        return x + self.attend(x, x, x, need_weights=False)[0], emb


class WritingToEmbeddings(nn.Module):
    """Writes to what a block gives that depends on the prompt alone."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(GivingBlock() for _ in range(2))

    def forward(self, hidden_states, timestep, prompt):
        for block in self.blocks:
            hidden_states, prompt = block(hidden_states, prompt)
            prompt.mul_(timestep[:1, None] / 900)
        return hidden_states


@torch.no_grad()
def test_blocks_give_copies_of_their_conditioning():
    model = settled(WritingToEmbeddings())
    denoiser = dqar_fx.transform(model, Schedule.compute_all(3), capture="blocks")
    for step in range(3):
        given = seeded(2, 5, 8) + step, torch.full((2,), 900.0 - 100 * step), seeded(2, 8)
        torch.testing.assert_close(denoiser(*given), model(*given))


@every_model
def test_blocks_attention_reused_equals_hooks_bit_for_bit(name):
    case = MODELS[name]()
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 2), capture="blocks")
    denoiser.prepare(**case.inputs(0))
    oracle = KeptOutputs(case.model, denoiser.table)
    for seed in range(2):  # a second trajectory reads nothing of the first
        for step in range(STEPS):
            inputs = case.inputs(step, seed)
            assert torch.equal(plain(denoiser, inputs), oracle(step, **inputs)), step
        denoiser.reset()


@pytest.mark.parametrize("name", ["dit", "flux", "sd3"])
def test_blocks_residuals_reused_equal_hooks_and_cost_an_add(name):
    case = MODELS[name]()
    denoiser = dqar_fx.transform(
        case.model, Schedule.interval(STEPS, 2), sites="block", capture="blocks"
    )
    denoiser.prepare(**case.inputs(0))
    oracle = ResidualOracle(case.model, denoiser.table)
    for step in range(STEPS):
        inputs = case.inputs(step)
        assert torch.equal(denoiser(**inputs).sample, oracle(step, **inputs)), step
    nodes = [n for n in denoiser.row_graph(1).graph.nodes if n.op == "call_function"]
    assert {str(node.target) for node in nodes} == {"aten.add.Tensor"}
    columns = [len(site.kept) for site in denoiser.explain().sites]
    assert len(nodes) == sum(columns)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("flux", {"sites": "all", "cache": "int8"}),
        ("sd3", {"sites": ["block", "all"]}),
        ("dit", {"sites": "block", "forecast": 1}),
        ("dit", {"keep": "kv"}),
    ],
)
def test_blocks_equal_the_whole_graph(name, given):
    case, given = MODELS[name](), dict(given)
    schedule = Schedule.interval(6, 3, warmup=2)
    schedule = schedule.forecast(given.pop("forecast")) if "forecast" in given else schedule
    whole, blocks = (
        dqar_fx.transform(case.model, schedule, capture=tier, **given)
        for tier in ("graph", "blocks")
    )
    for step in range(6):
        inputs = case.inputs(step)
        assert torch.equal(blocks(**inputs).sample, whole(**inputs).sample), step
    assert blocks.table == whole.table
    assert blocks.runs[0].describe() == whole.runs[0].describe()
    assert (whole.explain().tier, blocks.explain().tier) == ("graph", "blocks")


def test_blocks_streams_and_batch_sizes_have_slots_of_their_own():
    case = make_dit(layers=2)
    oracles = {name: Oracle(case.model) for name in ("cond", "uncond")}
    schedule = Schedule.from_actions("SRSR")
    denoiser = dqar_fx.transform(case.model, schedule, capture="blocks")
    for step in range(4):
        for shift, name in enumerate(oracles):
            inputs = case.inputs(step)
            inputs["class_labels"] = inputs["class_labels"] + shift
            with denoiser.cache_context(name, step_index=step):
                found = denoiser(**inputs).sample
            assert torch.equal(found, oracles[name](denoiser.table.actions[step], **inputs))
    assert len(denoiser.program.streams) == 2
    denoiser.reset()
    other = make_dit(batch=3, layers=2)
    oracle = Oracle(case.model)
    for step in range(4):
        found = denoiser(**other.inputs(step)).sample
        expected = oracle(denoiser.table.actions[step], **other.inputs(step))
        assert torch.equal(found, expected)


def test_blocks_guidance_equals_the_whole_graph():
    case = make_dit(batch=4, layers=2)
    case.has_halves = True
    made = [
        dqar_fx.transform(
            case.model,
            Schedule.from_actions("CSRR"),
            guidance=dqar_fx.Guidance(
                Schedule.from_actions("SRSR"), batched="conditional_first"
            ),
            capture=tier,
        )
        for tier in ("graph", "blocks")
    ]
    for step in range(4):
        whole, blocks = (denoiser(**case.inputs(step)).sample for denoiser in made)
        assert torch.equal(whole, blocks)


# ---- what a forward does between its blocks ----------------------------------------------


@pytest.mark.parametrize("sites", ["attention", "block"])
def test_blocks_of_a_forward_that_reads_the_latent_equal_hooks(sites):
    model = Blocks(call_halving).eval()
    denoiser = dqar_fx.transform(
        model, Schedule.interval(STEPS, 2), sites=sites, capture="blocks"
    )
    denoiser.prepare(**inputs_at(0))
    assert model.means == []  # the model itself did not run
    oracle = KeptOutputs(model, denoiser.table, residual=sites == "block")
    for step in range(STEPS):
        assert torch.equal(denoiser(**inputs_at(step)), oracle(step, **inputs_at(step)))
    assert "8 of 8" in denoiser.runs[0].describe() or "6 of 6" in denoiser.runs[0].describe()


def test_blocks_called_twice_in_a_row_have_two_sites():
    model = Blocks(call_twice).eval()
    denoiser = dqar_fx.transform(model, Schedule.compute_all(3), capture="blocks")
    for step in range(3):
        found = denoiser(**inputs_at(step))
        with torch.no_grad():
            assert torch.equal(found, model(**inputs_at(step)))
    assert denoiser.table.sites[:2] == ("blocks.0.attn", "blocks.0.attn@1")
    reusing = denoiser.with_schedule(Schedule.interval(4, 2))
    for step in range(4):
        reusing(**inputs_at(step))
    assert "12 of 12 promised cells reused" in reusing.runs[0].describe()


def test_blocks_hooks_run_where_they_lie_and_inner_ones_are_traced():
    model, seen = Blocks(call_copies).eval(), []
    block = model.blocks[1]
    block.register_forward_hook(lambda *_: seen.append("block"))
    block.register_forward_pre_hook(lambda _, args: (args[0] * 2.0, *args[1:]))
    block.attn.register_forward_hook(lambda *given: given[2] + 1.0)
    denoiser = dqar_fx.transform(model, Schedule.compute_all(3), capture="blocks")
    denoiser.prepare(**inputs_at(0))
    seen.clear()
    for step in range(3):
        found = denoiser(**inputs_at(step))
        assert len(seen) == 1 + 2 * step
        with torch.no_grad():
            assert torch.equal(found, model(**inputs_at(step)))


def test_blocks_that_take_an_unknown_object_run_as_themselves():
    model = Blocks(call_with_cache).eval()
    denoiser = dqar_fx.transform(model, Schedule.interval(4, 2), capture="blocks")
    for step in range(4):
        cache = Cache()
        denoiser(**inputs_at(step), cache=cache)
        assert len(cache) == 1  # written to once, at the first call as well
    assert denoiser.table.sites == ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")
    said = "it is called with Cache, which no graph can take"
    assert denoiser.explain().uncaptured == {"blocks.1": said}
    assert f"1 blocks run as themselves:\n  blocks.1: {said}" in str(denoiser.explain())
    assert len(denoiser._programs) == 1


def test_blocks_that_write_to_what_they_are_given_are_left_and_their_attention_is_not():
    model = Blocks(call_copies, WritingBlock).eval()
    denoiser = dqar_fx.transform(model, Schedule.interval(4, 2), capture="blocks")
    denoiser.prepare(**inputs_at(0))
    oracle = KeptOutputs(model, denoiser.table)
    for step in range(4):
        assert torch.equal(denoiser(**inputs_at(step)), oracle(step, **inputs_at(step)))
    reasons = set(denoiser.explain().uncaptured.values())
    assert reasons == {"it writes to what it is given"}


def test_blocks_called_otherwise_compute_say_so_and_are_captured_anew():
    model = Blocks(call_varying).eval()
    denoiser = dqar_fx.transform(model, Schedule.interval(6, 6), capture="blocks")
    for step in range(3):
        denoiser(**inputs_at(step))
    assert denoiser.table.sites == ("blocks.0.attn", "blocks.2.attn")
    fresh = Blocks(call_varying).eval()
    oracle = KeptOutputs(fresh, denoiser.table)
    oracle(0, **inputs_at(0))
    with pytest.warns(UserWarning, match=r"blocks\.1 was called with .* captured anew"):
        found = denoiser(**inputs_at(3))
    assert torch.equal(found, oracle(1, **inputs_at(3)))  # what came is computed
    with pytest.warns(UserWarning, match="3 of 3 sites start cold"):
        found = denoiser(**inputs_at(4))
    with torch.no_grad():
        assert torch.equal(found, fresh(**inputs_at(4)))
    oracle = KeptOutputs(fresh, denoiser.table)
    oracle(0, **inputs_at(4))
    assert torch.equal(denoiser(**inputs_at(5)), oracle(5, **inputs_at(5)))
    assert denoiser.table.sites == ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")


def test_blocks_a_failed_step_leaves_nothing_to_reuse():
    model, fails = Blocks(call_copies).eval(), []

    def fail(*_):
        if fails:
            raise KeyboardInterrupt

    model.blocks[2].register_forward_hook(fail)
    denoiser = dqar_fx.transform(model, Schedule.interval(3, 3), capture="blocks")
    denoiser(**inputs_at(0))
    fails.append(True)
    with pytest.raises(KeyboardInterrupt):
        denoiser(**inputs_at(1))
    fails.clear()
    with torch.no_grad():
        expected = model(**inputs_at(1))
    with pytest.warns(UserWarning, match="start cold"):
        assert torch.equal(denoiser(**inputs_at(1)), expected)


# ---- compiled ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_blocks_are_compiled_once_per_structure(name, fresh_counters):
    case, graphs = MODELS[name](), []

    def count(gm, _):
        graphs.append(gm)
        return gm.forward

    denoiser = dqar_fx.transform(
        case.model,
        Schedule.interval(STEPS, 2),
        sites="all",
        capture="blocks",
        compile={"backend": count},
    )
    plain_one = dqar_fx.transform(
        case.model, Schedule.interval(STEPS, 2), sites="all", capture="blocks"
    )
    for step in range(STEPS):
        found, expected = (d(**case.inputs(step)).sample for d in (denoiser, plain_one))
        assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    kinds = {"dit": 1, "flux": 2}[name]  # of blocks, which store, reuse, and compute at last
    of_blocks = [call for call in denoiser.program.plan.calls if call.columns]
    assert len({call.region for call in of_blocks}) == kinds
    assert len(of_blocks) == 5
    assert len([gm for gm in graphs if len(gm.graph.nodes) > 40]) <= 3 * kinds
    assert len(graphs) == len(denoiser.program.variants)
    denoiser.reset()
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(STEPS):
            denoiser(**case.inputs(step))
