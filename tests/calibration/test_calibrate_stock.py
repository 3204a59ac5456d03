"""Calibration of a stock pipeline: numbers against plain hooks, and what it leaves."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from torch import nn

import dqar_fx
from dqar_fx import Calibration, Schedule, calibrate, signal_to_noise
from tests.helpers.calibration_oracle import (
    attentions_of,
    change_by_hand,
    check_cells,
    entropy_by_hand,
    record,
)
from tests.helpers.models import make_dit, seeded
from tests.helpers.random_calibrations import assert_same
from tests.helpers.toy_pipeline import QUIET
from tests.test_pipeline import make_pipeline

STEPS, AGES, LABELS = 5, 3, [1, 2]
CALL = {"guidance_scale": 1.5, "output_type": "np"}


class Keeping(DiTPipeline):
    """Remembers its pictures."""

    def __call__(self, *args, **kwargs):
        result = super().__call__(*args, **kwargs)
        self.__dict__.setdefault("pictures", []).append(result.images)
        return result


@pytest.fixture(scope="module")
def dit():
    """A stock pipeline around a tiny DiT."""
    model = make_dit(layers=2).model
    model.register_to_config(num_embeds_ada_norm=1000)
    for block in model.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        weight = seeded(1001, embedder.embedding_table.embedding_dim)
        embedder.embedding_table = nn.Embedding.from_pretrained(weight)
    return Keeping(**make_pipeline(model).components)


@pytest.fixture(scope="module")
def calibrated(dit):
    """The calibration of that pipeline, and what it did to it."""
    dit.set_progress_bar_config(disable=True, desc="own")
    before = dit.transformer, dit.scheduler, dict(dit._progress_bar_config)
    config = dict(dit.config)
    calibration = calibrate(
        dit,
        LABELS,
        num_steps=STEPS,
        max_age=AGES,
        cells_per_step=2,
        compare_kv=True,
        **QUIET,
        **CALL,
    )
    after = dit.transformer, dit.scheduler, dict(dit._progress_bar_config)
    assert dict(dit.config) == config
    return calibration, before, after


@pytest.fixture(scope="module")
def recorded(dit, calibrated):
    """The calls of the untouched transformer in the same run."""
    (calls,) = record(dit, LABELS, STEPS, **CALL)
    return calls


def test_calibrate_dit_sites_are_those_of_transform(dit, calibrated, recorded):
    calibration, _, _ = calibrated
    assert calibration.sites == tuple(attentions_of(dit.transformer))
    assert (calibration.num_steps, calibration.max_age) == (STEPS, AGES)
    assert calibration.samples == len(LABELS)
    assert len(recorded) == STEPS


def test_calibrate_dit_change_equals_norms_of_hooked_outputs(calibrated, recorded):
    expected = change_by_hand(recorded, AGES)
    np.testing.assert_allclose(calibrated[0].change, expected, rtol=1e-4)
    assert np.isnan(expected[0]).all()
    assert np.isnan(expected[2, :, 2]).all()


def test_calibrate_dit_entropy_equals_softmax_in_hooks(calibrated, recorded):
    np.testing.assert_allclose(calibrated[0].entropy, entropy_by_hand(recorded), rtol=1e-4)


def test_calibrate_dit_cells_equal_the_model_with_one_hooked_replacement(
    dit, calibrated, recorded
):
    cells = calibrated[0].cells
    assert len(cells) == 2 * (STEPS - 1)
    assert (cells.age >= 1).all()
    assert (cells.age <= np.minimum(cells.step, AGES)).all()
    assert np.isfinite(cells.kv_error).all()
    assert (cells.error > 1e-4).all(), "the test would compare noise"
    check_cells(cells, dit.transformer, recorded, range(len(cells)))


def test_calibrate_dit_ratios_are_those_of_the_scheduler(calibrated):
    expected = signal_to_noise(DDIMScheduler(), STEPS)
    assert np.array_equal(calibrated[0].snr, expected)


def test_calibrate_dit_pictures_are_those_without_it(dit, calibrated, recorded):
    probed, plain = dit.pictures[:2]
    assert np.array_equal(probed, plain)


def test_calibrate_dit_pipeline_is_as_before(calibrated):
    _, before, after = calibrated
    assert before[0] is after[0]
    assert before[1] is after[1]
    assert before[2] == after[2] == {"disable": True, "desc": "own"}


def test_calibrate_dit_gates_run_on_the_model(dit, calibrated):
    gate = dqar_fx.entropy_gate(calibrated[0], quantile=0.3) & Schedule.linear(STEPS, 1)
    model = dit.transformer
    try:
        dit.transformer = dqar_fx.transform(model, gate)
        dit(LABELS, num_inference_steps=STEPS, generator=torch.Generator(), **CALL)
        assert dit.transformer.table == gate.resolve(calibrated[0].sites)
        assert 0 < dit.transformer.table.reuse_ratio < 1
    finally:
        dit.transformer = model


def test_calibrate_stock_pipeline_that_fails_is_as_before(dit):
    model, config = dit.transformer, dict(dit.config)
    dit.set_progress_bar_config(disable=True)
    with (
        mock.patch.object(dit.scheduler, "step", side_effect=RuntimeError("no more")),
        pytest.raises(RuntimeError, match="no more"),
    ):
        calibrate(dit, LABELS, num_steps=STEPS, sites="*.0.attn1", **QUIET, **CALL)
    assert dit.transformer is model
    assert dict(dit.config) == config
    assert dit._progress_bar_config == {"disable": True}


def test_calibration_saved_and_loaded_is_the_same(calibrated, tmp_path):
    calibrated[0].save(tmp_path / "new" / "folder")
    loaded = Calibration.load(tmp_path / "new" / "folder")
    assert_same(loaded, calibrated[0])
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "calibration.json",
        "calibration.safetensors",
    ]
