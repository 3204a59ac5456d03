"""Counted MACs equal what PyTorch counts on a real run, and what is written on paper."""

import pytest
import torch

import dqar_fx
from benchmarks.harness.geometry import Geometry, draw_timesteps
from benchmarks.harness.macs import count_macs, count_trajectories, reuse_masks, to_meta
from dqar_fx import Schedule

GEOMETRY = Geometry(layers=3, width=32, heads=2, tokens=16, batch=2)
SCHEDULES = {
    "compute all": Schedule.compute_all(7),
    "linear": Schedule.linear(7, 1),
    "interval": Schedule.interval(7, 3, warmup=2),
    "one site": Schedule.from_actions(["SRRRSRR", "CCCCCCC", "CCCSRRR"]),
}


@pytest.fixture(scope="module")
def model():
    return GEOMETRY.build()


@pytest.fixture(scope="module")
def macs(model):
    return count_trajectories(model, call_of(GEOMETRY), list(SCHEDULES.values()))


def call_of(geometry):
    return {
        "hidden_states": geometry.draw_latent(),
        "timestep": torch.zeros(1, dtype=torch.long).expand(geometry.batch),
        "class_labels": geometry.labels(),
    }


@torch.no_grad()
def test_count_trajectories_untransformed_equals_real_run(model, macs):
    assert macs.untransformed_step == count_macs(lambda: model(**call_of(GEOMETRY)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_count_trajectories_transformed_equals_real_run(name, model, macs):
    denoiser = dqar_fx.transform(model, SCHEDULES[name], example_inputs=call_of(GEOMETRY))
    labels = GEOMETRY.labels()

    def run():
        for timestep in draw_timesteps(7):
            denoiser(
                GEOMETRY.draw_latent(),
                timestep=timestep.expand(GEOMETRY.batch),
                class_labels=labels,
            )

    assert macs.trajectories[list(SCHEDULES).index(name)] == count_macs(run)


def test_count_trajectories_reuse_saves_attention_alone(macs):
    """4 projections of width^2 per token, and two products of tokens^2 by width."""
    g = GEOMETRY
    attention = g.batch * (4 * g.tokens * g.width**2 + 2 * g.tokens**2 * g.width)
    table = SCHEDULES["interval"].resolve("abc")
    reused = sum(map(sum, reuse_masks(table)))
    assert reused > 0
    assert macs.trajectories[0] - macs.trajectories[2] == reused * attention


def test_count_macs_knows_fused_attention_of_cpus():
    q = torch.zeros(2, 3, 16, 8)

    def attend():
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)

    assert count_macs(attend) == 2 * (2 * 3 * 16 * 16 * 8)


def test_to_meta_leaves_the_model_where_it_is(model):
    copied = to_meta(model)
    assert {p.device.type for p in copied.parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert [n for n, _ in copied.named_parameters()] == [
        n for n, _ in model.named_parameters()
    ]
