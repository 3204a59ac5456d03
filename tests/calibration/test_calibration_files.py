"""Calibrations saved and loaded, and what is no such folder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dqar_fx import Calibration, OptionError, Policy, ScheduleError
from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.passes import FORMATS
from tests.helpers.random_calibrations import ARRAYS, assert_same, random_calibration
from tests.helpers.toy_pipeline import make_toy


@pytest.mark.parametrize("cells", [0, 1, 30])
def test_calibration_with_few_cells_saved_and_loaded_is_the_same(cells, tmp_path):
    calibration = random_calibration(cells=cells)
    calibration.save(str(tmp_path))
    assert_same(Calibration.load(str(tmp_path)), calibration)


def test_calibration_saved_over_another_replaces_it(tmp_path):
    for seed in (1, 2):
        random_calibration(seed).save(tmp_path)
    assert_same(Calibration.load(tmp_path), random_calibration(2))


@pytest.mark.parametrize("turn", [np.asfortranarray, lambda a: np.repeat(a, 2, 0)[::2]])
def test_calibration_of_arrays_that_are_not_contiguous_is_saved_and_loaded(turn, tmp_path):
    plain = random_calibration(cells=20)
    turned = replace(plain, **{name: turn(getattr(plain, name)) for name in ARRAYS})
    turned.save(tmp_path)
    assert_same(Calibration.load(tmp_path), plain)


def test_calibration_of_a_meta_model_is_saved_and_loaded(tmp_path):
    meta = copy.deepcopy(make_toy()).to("meta")
    fingerprint = Fingerprint.of(meta)
    calibration = replace(random_calibration(), fingerprint=fingerprint)
    calibration.save(tmp_path)
    assert_same(Calibration.load(tmp_path), calibration)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def edit(**changes):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def drop(name):
    def change(path):
        facts = json.loads(path.read_text())
        del facts[name]
        path.write_text(json.dumps(facts))

    return change


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("json", lambda path: path.unlink()),
        ("safetensors", lambda path: path.unlink()),
        ("json", cut),
        ("safetensors", cut),
        ("safetensors", lambda path: path.write_bytes(b"")),
        ("json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("json", lambda path: path.write_text("[]")),
        ("json", drop("sites")),
        ("json", drop("samples")),
        ("json", drop("structure")),
        ("json", edit(sites=3)),
        ("json", edit(sites=None)),
        ("json", edit(sites=["blocks.0.attn"])),
    ],
    ids=[
        "no_json",
        "no_arrays",
        "json_cut",
        "arrays_cut",
        "arrays_empty",
        "json_is_noise",
        "json_is_a_list",
        "no_sites",
        "no_samples",
        "no_structure",
        "sites_are_a_number",
        "sites_are_nothing",
        "sites_are_too_few",
    ],
)
def test_calibration_load_damaged_is_a_schedule_error(name, damage, tmp_path):
    random_calibration(cells=5).save(tmp_path)
    damage(tmp_path / f"calibration.{name}")
    with pytest.raises(ScheduleError) as caught:
        Calibration.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_calibration_load_missing_says_what_is_expected(tmp_path):
    with pytest.raises(ScheduleError) as caught:
        Calibration.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no calibration can be read from {tmp_path}: FileNotFoundError")
    assert message.endswith(
        "Expected calibration.json and calibration.safetensors, as save(folder) writes them"
    )


def test_calibration_load_of_a_policy_is_a_schedule_error(tmp_path):
    policy = Policy.fit(random_calibration(cells=100), num_updates=2)
    policy.save(tmp_path)
    with pytest.raises(ScheduleError, match="no calibration can be read"):
        Calibration.load(tmp_path)
    for kind in ("json", "safetensors"):
        (tmp_path / f"policy.{kind}").rename(tmp_path / f"calibration.{kind}")
    with pytest.raises(ScheduleError):
        Calibration.load(tmp_path)


def test_calibration_load_lacking_an_array_names_it(tmp_path):
    random_calibration().save(tmp_path)
    content = {"fingerprint": torch.zeros(0, 8), "snr": torch.zeros(3)}
    save_file(content, tmp_path / "calibration.safetensors")
    with pytest.raises(ScheduleError, match="the calibration lacks 'entropy'"):
        Calibration.load(tmp_path)


# ---- damping ------------------------------------------------------------------------------


def test_calibration_tells_the_damping_of_noise_and_of_formats():
    calibration = random_calibration()
    change = np.nanmean(calibration.change[:, :, 0])
    assert calibration.damping(0.02) == pytest.approx(0.02 / change)
    rounding = FORMATS["int8"].rounding
    assert calibration.damping("int8") == pytest.approx(rounding / change)
    assert calibration.damping("same") == 0


def test_calibration_tells_no_damping_of_a_format_or_change_that_is_not_known():
    with pytest.raises(OptionError, match="rounding='int3' is unknown; known are same"):
        random_calibration().damping("int3")
    with pytest.raises(ScheduleError, match="calibration of 1 steps has no change"):
        random_calibration(steps=1).damping(0.1)
