"""The ceiling's command: its parts, and its errors."""

import pytest
import torch

import dqar_fx
from benchmarks import ceiling
from benchmarks.harness import options
from benchmarks.harness.geometry import Geometry, draw_timesteps
from tests.benchmarks.command_errors import refuse

TINY = Geometry(layers=2, width=16, heads=2, tokens=16, batch=2)


@pytest.fixture(scope="module")
def model():
    return TINY.build()


def test_geometry_default_is_dit_s_2():
    parameters = sum(p.numel() for p in Geometry(layers=1).build().parameters())
    block = 12 * 384**2 + 6 * 384**2
    assert block < parameters < 2 * block
    assert Geometry().latent_size == 32


@pytest.mark.parametrize("num_steps", [2, 50, ceiling.MAX_PAIRS + ceiling.WARMUP_STEPS])
def test_draw_timesteps_descends(num_steps):
    timesteps = draw_timesteps(num_steps)
    assert len(timesteps) == num_steps
    assert (timesteps.diff() < 0).all()


@torch.no_grad()
def test_ceiling_pairs_count_only_reuse(model):
    schedule = dqar_fx.Schedule.from_actions("S" + "R" * (3 + ceiling.WARMUP_STEPS))
    denoiser = dqar_fx.transform(model, schedule)
    assert ceiling.measure_error(model, denoiser, TINY, 4) == 0
    pairs = ceiling.measure_pairs(model, denoiser, TINY, 4)
    assert len(pairs.base_s) == len(pairs.reuse_s) == 4
    assert denoiser.program.streams
    text = ceiling.describe(pairs, 1.5, 0.0)
    assert "median of 4" in text
    assert "ceiling by MACs             1.500, of which reached " in text


def test_ceiling_shares_out_what_is_done_ahead():
    pairs = ceiling.Pairs((2.0, 2.0), (1.0, 1.0), ahead_s=10.0, num_steps=10)
    assert pairs.ratios == [2.0, 2.0]
    assert pairs.whole_ratio == 1.0


def test_ceiling_count_is_that_of_paper(model):
    g = TINY
    attention = 4 * g.tokens * g.width**2 + 2 * g.tokens**2 * g.width
    rest = 8 * g.tokens * g.width**2
    bound = (attention + rest) / rest
    assert 1 < ceiling.count_ceiling(model, g) < bound


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "60"], "--tokens must be a square number, found 60"),
        (["--heads", "5"], "--width 384 is no multiple of --heads 5"),
        (["--layers", "0"], "--layers: expected an integer of at least 1"),
    ],
)
def test_ceiling_bad_geometry_is_said_with_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, error = refuse(ceiling.main, arguments, capsys)
    assert code == 2
    assert message in error


def test_ceiling_without_compiler_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "can_compile", lambda device: False)
    code, error = refuse(ceiling.main, [], capsys)
    assert code == 2
    assert error.startswith("error: no C++ compiler was found")
