"""Other people's caches: what attaches reuses, state is fresh each time, nothing leaks."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch._dynamo.utils import counters

from benchmarks.ablation.protocol import Protocol
from benchmarks.contenders import cache_dit, settings
from benchmarks.contenders.bench import Bench
from benchmarks.contenders.cache_dit import CacheDit, make_mask
from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.hooks import (
    Clock,
    Driven,
    count_hooked,
    measure_magnitudes,
    mix_in_cache,
    swap_halves,
)
from benchmarks.contenders.kinds import BLOCKS, CACHE_DIT, COMPILED, DIFFUSERS, EAGER
from benchmarks.contenders.recipes import Untransformed
from benchmarks.contenders.settings import list_theirs
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry
from dqar_fx import prior_art

STEPS = 12
GEOMETRY = Geometry(layers=3, width=32, heads=2, tokens=16, batch=4)
HOOKS = {f"{tool} {setting}": recipe for tool, setting, recipe in settings.list_hooks()}
ODD = {
    "FasterCache defaults": "The size of tensor a",
    "FirstBlockCache in the stock pipeline": "No cache context is set",
    "TaylorSeer defaults": None,
    "SeaCache in the stock pipeline": None,
}
"""What does not run on a DiT as documented, with its message; None for what does nothing."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.meshgrid",  # of FasterCache
    "ignore::DeprecationWarning:cache_dit",
)


class Loop:
    """A pipeline and its pictures: DDIM's loop without a VAE."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.seeds = (0,)

    def generate(self, pipe, steps):
        latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        labels = torch.tensor([1, 2, 1000, 1000])
        pipe.scheduler.set_timesteps(steps)
        with torch.no_grad():
            for timestep in pipe.scheduler.timesteps:
                both = torch.cat((latent, latent))
                noise = pipe.transformer(
                    both, timestep=timestep.expand(4), class_labels=labels
                ).sample[:, :4]
                own, null = noise.chunk(2)
                guided = null + 1.5 * (own - null)
                latent = pipe.scheduler.step(guided, timestep, latent).prev_sample
        return latent


@pytest.fixture(scope="module")
def model():
    """Random weights, with blocks that do something: modulations of adaLN start at zero."""
    built = GEOMETRY.build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return built


@pytest.fixture
def bench(model):
    scheduler = DDIMScheduler()
    pipe = type("Pipe", (), {"scheduler": scheduler, "transformer": model})()
    made = Bench(
        pipe, model, Protocol({0: "a"}, (0,), 1.5), 2, STEPS, torch.device("cpu"), "eager"
    )
    task = Loop(scheduler)
    made.made["task"] = task
    return made


@pytest.fixture(autouse=True)
def looped(monkeypatch):
    monkeypatch.setattr(Bench, "task", lambda self, number: self.made["task"])


def run(bench, recipe, mode=EAGER):
    entrant = recipe.build(bench, mode)
    first, _ = bench.run(entrant, STEPS, bench.task(0))
    second, _ = bench.run(entrant, STEPS, bench.task(0))
    assert torch.equal(first, second), "a second trajectory saw what the first one kept"
    return first, entrant


def plain(bench):
    return bench.task(0).generate(bench.pipe, STEPS)


def contender(recipe, name="x"):
    return Contender(name, DIFFUSERS, STEPS, recipe, EAGER)


# ---- diffusers ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in HOOKS if name not in ODD])
def test_hooks_attach_and_run_fresh(name, bench, model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reference = plain(bench)
    images, entrant = run(bench, HOOKS[name])
    assert images.isfinite().all()
    assert entrant.hooked
    assert count_hooked(model) == 0
    assert "forward" not in vars(model)
    assert torch.equal(plain(bench), reference)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    "name",
    [
        "PAB range 3, timesteps all",
        "FasterCache to timestep 781",
        "TaylorSeer N=3 O=1",
        "TaylorSeer lite N=3 O=2",
        "MagCache 0.24, at most 5",
        "SeaCache 0.4, at most 3",
    ],
)
def test_hooks_reuse(name, bench):
    full = bench.count_macs(contender(Untransformed(), "full"))
    assert bench.count_macs(contender(HOOKS[name])) < 0.95 * full
    assert not torch.equal(run(bench, HOOKS[name])[0], plain(bench))


@pytest.mark.parametrize("name", ODD)
def test_hooks_as_documented_fail_or_do_nothing(name, bench):
    if ODD[name]:
        with pytest.raises((RuntimeError, ValueError), match=ODD[name]):
            run(bench, HOOKS[name])
        return
    images, entrant = run(bench, HOOKS[name])
    assert torch.equal(images, plain(bench))
    assert entrant.hooked == (0 if name.startswith("TaylorSeer") else 4)


def test_taylorseer_computes_where_our_schedule_of_it_does(bench):
    full = bench.count_macs(contender(Untransformed(), "full"))
    macs = bench.count_macs(contender(HOOKS["TaylorSeer N=3 O=1"]))
    table = prior_art.taylorseer(STEPS, 3, 1, first=3, start=4).resolve(["a.attn", "a.ff"])
    blocks = GEOMETRY.layers * GEOMETRY.batch
    width, tokens = GEOMETRY.width, GEOMETRY.tokens
    sites = blocks * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert full - macs == int(table.is_read[:, 0].sum()) * sites


def test_driven_swapped_model_sees_the_unconditional_half_first(model):
    seen = []

    def call(latents, timestep, class_labels):
        seen.append(class_labels.tolist())
        return SimpleNamespace(sample=latents + 1)

    inner, latents = mix_in_cache(copy.deepcopy(model)), torch.arange(4.0)
    inner.forward = call
    driven = Driven(inner, inner, Clock(STEPS), swapped=True, stock=False)
    output = driven(latents, torch.zeros(4), torch.tensor([1, 2, 1000, 1000]))
    assert seen == [[1000, 1000, 1, 2]]
    assert torch.equal(output.sample, latents + 1)


def test_swap_halves_is_its_own_inverse():
    batch = torch.arange(4)
    assert swap_halves(batch).tolist() == [2, 3, 0, 1]
    assert torch.equal(swap_halves(swap_halves(batch)), batch)


def test_clock_sigma_is_a_weight_of_noise():
    clock = Clock(4, torch.tensor([0.64, 0.36]))
    assert clock.sigma == pytest.approx(0.6 / 1.4)
    assert clock.scale == pytest.approx(1 / 1.4)
    clock.timestep = 1
    assert clock.sigma == pytest.approx(0.8 / 1.4)
    assert Clock(4).sigma is None


def test_magcache_is_calibrated_once_by_its_own_run(bench):
    ratios = bench.once(measure_magnitudes)
    assert len(ratios) == STEPS
    assert ratios[0] == 1.0
    assert bench.once(measure_magnitudes) is ratios


@pytest.mark.parametrize(
    "name", ["TaylorSeer N=3 O=1", "PAB range 2, timesteps 100-800", "FirstBlockCache 0.05"]
)
def test_hooks_compile_with_the_cache_on(name, bench, monkeypatch):
    seen = []

    def compile(model, **keywords):
        seen.append((count_hooked(model), keywords))
        return model

    monkeypatch.setattr(torch, "compile", compile)
    images, entrant = run(bench, HOOKS[name], COMPILED)
    assert seen == [(entrant.hooked, {"isolate_recompiles": True})]
    assert torch.equal(images, run(bench, HOOKS[name])[0])


@pytest.mark.slow
def test_many_copies_compile_each_for_itself(bench):
    """Without isolation, all would share the graphs of their code, and its limit of eight."""
    inputs = torch.zeros(4, 4, 8, 8), torch.zeros(4), torch.zeros(4, dtype=torch.long)
    for _ in range(10):
        compiled = bench.compile(bench.clone(), backend="eager")
        before = counters["stats"]["unique_graphs"]
        with torch.no_grad():
            compiled(inputs[0], timestep=inputs[1], class_labels=inputs[2])
        assert counters["stats"]["unique_graphs"] == before + 1


# ---- cache-dit ---------------------------------------------------------------------------

CACHED = dict(settings.list_cache_dit())


@pytest.mark.parametrize("name", CACHED)
def test_cache_dit_attaches_and_runs_fresh(name, bench, model):
    pytest.importorskip("cache_dit")
    recipe = CACHED[name]
    if name == "defaults":
        recipe = CacheDit({"Fn_compute_blocks": 2})  # by default more than this model has
    reference = plain(bench)
    images, _ = run(bench, recipe)
    assert images.isfinite().all()
    assert torch.equal(plain(bench), reference)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    "name", ["fast mask + TaylorSeer O=1", "mask of every 3 + TaylorSeer O=2"]
)
def test_cache_dit_reuses(name, bench):
    pytest.importorskip("cache_dit")
    full = bench.count_macs(contender(Untransformed(), "full"))
    assert bench.count_macs(contender(CACHED[name])) < 0.8 * full
    assert not torch.equal(run(bench, CACHED[name])[0], plain(bench))


def test_cache_dit_compiles_whole_or_block_by_block(bench, monkeypatch):
    pytest.importorskip("cache_dit")
    seen = []

    def compile(model, *args, **keywords):
        seen.append((type(model).__name__, keywords))
        return model

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile(self))
    recipe = CACHED["fast mask + TaylorSeer O=1"]
    recipe.build(bench, COMPILED)
    recipe.build(bench, BLOCKS)
    limit = {"isolate_recompiles": True, "recompile_limit": cache_dit.RECOMPILES}
    assert seen[0] == ("DiTTransformer2DModel", limit)
    assert seen[1:] == [("BasicTransformerBlock", {})] * GEOMETRY.layers


def test_cache_dit_missing_says_which_extra(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(InputError, match=r'pip install "dqar_fx\[peers\]"'):
        CacheDit().build(bench, EAGER)


def test_make_mask_of_every_third():
    assert make_mask(3, 7) == [1, 0, 0, 1, 0, 0, 1]


# ---- their schedules, run by dqar_fx -----------------------------------------------------

THEIRS = {each.setting: each for each in list_theirs(STEPS, EAGER)}


@pytest.mark.parametrize(
    "name",
    [
        "FORA N=3, by dqar_fx",
        "TaylorSeer N=3 O=2, by dqar_fx",
        "MagCache 0.06, at most 1, by dqar_fx",
    ],
)
def test_their_schedules_run(name, bench):
    images, _ = run(bench, THEIRS[name].recipe)
    assert images.isfinite().all()
    assert not torch.equal(images, plain(bench))


def test_their_masks_run_as_cache_dit_runs_them(bench):
    pytest.importorskip("cache_dit")
    ours, _ = run(bench, THEIRS["cache-dit fast mask, by dqar_fx"].recipe)
    mask = CacheDit({"Fn_compute_blocks": 1}, 0, "fast")
    torch.testing.assert_close(ours, run(bench, mask)[0], atol=1e-4, rtol=1e-4)


# ---- the list ----------------------------------------------------------------------------


def test_list_peers_has_all_modes():
    listed = list(settings.list_peers(STEPS, compiled=True))
    assert {each.family for each in listed} == {DIFFUSERS, CACHE_DIT}
    modes = {}
    for each in listed:
        modes.setdefault(each.setting, []).append(each.mode)
    for setting, found in modes.items():
        expected = [EAGER, COMPILED, BLOCKS] if setting.startswith("cache-dit") else None
        expected = expected or ([EAGER] if setting in ODD else [EAGER, COMPILED])
        assert found == expected, setting
    tools = {"PAB", "FasterCache", "FirstBlockCache", "TaylorSeer", "MagCache", "SeaCache"}
    assert {each.tool for each in listed} == {*tools, "cache-dit"}
    assert all(e.mode == EAGER for e in settings.list_peers(STEPS, compiled=False))
