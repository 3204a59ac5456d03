"""The learned policy: what it learns, predicts, keeps and says of itself."""

import json
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dqar_fx import BranchTable, Calibration, Policy, Schedule, ScheduleError, policy_gate
from dqar_fx.calibration.calibration import Cells
from tests.helpers.random_calibrations import random_calibration
from tests.helpers.rules_in_loops import check, policy_rule

STEPS, SITES, MAX_AGE, CELLS = 20, 6, 5, 400


def smooth_error(calibration, step, site, age):
    """A known error of a reuse: it follows change, age, noise and depth."""
    change = calibration.change[step, site, age - 1]
    noise = 1 / (1 + calibration.snr[step])
    return 1e-3 * change**1.5 * age**0.7 * (0.2 + noise) * (1 + 2 * site / (SITES - 1))


def smooth_calibration(seed=0, cells=CELLS):
    """A calibration whose measured errors are those of `smooth_error`."""
    drawn = random_calibration(seed, STEPS, SITES, MAX_AGE, cells)
    return with_errors(drawn, lambda *cell: smooth_error(drawn, *cell))


def with_errors(calibration, error):
    old = calibration.cells
    measured = error(old.step, old.site, old.age)
    cells = Cells(old.step, old.site, old.age, measured, old.kv_error, old.kv_change)
    return replace(calibration, cells=cells)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small products wait for each other's threads where a machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def calibration():
    return smooth_calibration()


@pytest.fixture(scope="module")
def policy(calibration):
    return Policy.fit(calibration)


# ---- the second implementation -----------------------------------------------------------


def features_of(calibration, step, site, age):
    """What is known of one cell, in plain numbers."""
    snr = min(max(calibration.snr[step], 1e-9), 1e9)
    depth = site / max(len(calibration.sites) - 1, 1)
    change = max(calibration.change[step, site, age - 1], 1e-9)
    return [math.log10(snr), depth, calibration.entropy[step, site], math.log10(change), age]


def silu(x):
    return x / (1 + np.exp(-x))


def forward(weights, x):
    """The network in numpy: predicted logarithms of errors, ``[cells]``."""
    w = {name: value.numpy() for name, value in weights.items()}
    x = (np.array(x, np.float64) - w["centre"]) / w["spread"]
    for layer in ("first", "second"):
        x = silu(x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"])
    return (x @ w["last.weight"].T + w["last.bias"])[:, 0]


def predicted_by_hand(weights, calibration):
    """``[steps, sites, ages]`` in plain loops; infinite where no step is so old."""
    found = np.full(calibration.change.shape, np.inf)
    for step, site, age in np.ndindex(found.shape):
        if age < step:
            x = features_of(calibration, step, site, age + 1)
            found[step, site, age] = 10 ** forward(weights, [x])[0]
    return found


def ranks(values):
    """Places in order; equal values share the mean of theirs."""
    return [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def spearman(one, other):
    return np.corrcoef(ranks(one), ranks(other))[0, 1]


# ---- learning ----------------------------------------------------------------------------


def test_policy_fit_smooth_error_ranks_unseen_cells_well(policy):
    assert policy.held_out["rank correlation"] > 0.9
    assert policy.held_out["median ratio"] < 1.3


def test_policy_fit_smooth_error_ranks_cells_that_were_never_tried(policy, calibration):
    rng = np.random.default_rng(11)
    step, site = rng.integers(1, STEPS, 300), rng.integers(0, SITES, 300)
    age = rng.integers(1, np.minimum(step, MAX_AGE) + 1)
    found = policy.predicted[step, site, age - 1]
    assert spearman(found, smooth_error(calibration, step, site, age)) > 0.8


def test_policy_fit_errors_of_pure_chance_are_not_ranked():
    drawn = random_calibration(2, STEPS, SITES, MAX_AGE, CELLS)
    rng = np.random.default_rng(5)
    chance = with_errors(drawn, lambda *_: rng.uniform(1e-4, 1e-1, CELLS))
    policy = Policy.fit(chance, num_updates=100)
    assert abs(policy.held_out["rank correlation"]) < 0.4


def test_policy_held_out_numbers_are_those_of_cells_it_did_not_learn_from(calibration):
    seed = 3
    policy = Policy.fit(calibration, seed=seed, num_updates=60)
    cells = calibration.cells
    order = np.random.default_rng(seed).permutation(CELLS)
    held = [cell for cell in range(CELLS) if order[cell] % 5 == 0]
    assert len(held) == CELLS // 5
    x = [features_of(calibration, cells.step[i], cells.site[i], cells.age[i]) for i in held]
    found, measured = forward(policy.weights, x), np.log10(cells.error[held])
    ratio = 10 ** np.median(np.abs(found - measured))
    assert set(policy.held_out) == {"rank correlation", "median ratio"}
    assert policy.held_out["rank correlation"] == pytest.approx(spearman(found, measured))
    assert policy.held_out["median ratio"] == pytest.approx(ratio)


def test_policy_fit_held_out_cells_do_not_change_the_network(calibration):
    held = np.random.default_rng(0).permutation(CELLS) % 5 == 0
    error = np.where(held, calibration.cells.error[::-1], calibration.cells.error)
    other = with_errors(calibration, lambda *_: error)
    one, two = (Policy.fit(each, num_updates=20) for each in (calibration, other))
    assert np.array_equal(one.predicted, two.predicted)


def test_policy_inputs_are_centred_on_the_cells_it_learned_from(calibration, policy):
    cells = calibration.cells
    learned = np.random.default_rng(0).permutation(CELLS) % 5 != 0
    x = np.array(
        [
            features_of(calibration, *cell)
            for cell in zip(cells.step, cells.site, cells.age, strict=True)
        ]
    )[learned]
    np.testing.assert_allclose(policy.weights["centre"].numpy(), x.mean(0))
    np.testing.assert_allclose(policy.weights["spread"].numpy(), x.std(0), rtol=1e-6)


# ---- predictions -------------------------------------------------------------------------


def test_policy_predicted_equals_the_network_in_numpy(policy, calibration):
    expected = predicted_by_hand(policy.weights, calibration)
    np.testing.assert_allclose(policy.predicted, expected, rtol=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("max_age", [None, 2])
def test_policy_gate_of_a_saved_policy_equals_the_network_in_plain_loops(
    policy, calibration, tmp_path, share, max_age
):
    policy.save(tmp_path)
    weights = {
        name.removeprefix("weights."): value
        for name, value in load_file(tmp_path / "policy.safetensors").items()
        if name.startswith("weights.")
    }
    expected = predicted_by_hand(weights, calibration)
    limit = float(np.quantile(expected[np.isfinite(expected)], share)) * (1 + 1e-6)
    schedule = policy_gate(Policy.load(tmp_path), limit, max_age=max_age)
    check(schedule, policy_rule(expected.tolist(), limit), max_age, calibration.sites)


def test_policy_of_one_site_has_no_depth():
    calibration = random_calibration(1, STEPS, 1, MAX_AGE, 60)
    policy = Policy.fit(calibration, num_updates=5)
    assert np.isfinite(policy.predicted[1:, :, 0]).all()
    expected = predicted_by_hand(policy.weights, calibration)
    np.testing.assert_allclose(policy.predicted, expected, rtol=1e-9)


def test_policy_extreme_measurements_give_finite_predictions(calibration):
    snr, change = calibration.snr.copy(), calibration.change.copy()
    snr[0], snr[1], snr[-1] = 0, 1e-30, np.inf
    change[:, 0] = np.where(np.isnan(change[:, 0]), np.nan, 0)
    error = np.where(calibration.cells.site == 0, 0, calibration.cells.error)
    extreme = with_errors(replace(calibration, snr=snr, change=change), lambda *_: error)
    policy = Policy.fit(extreme, num_updates=20)
    assert (np.isfinite(policy.predicted) == ~np.isnan(change)).all()
    assert all(math.isfinite(number) for number in policy.held_out.values())


def test_policy_held_out_equal_errors_share_a_rank(calibration):
    levels = with_errors(calibration, lambda step, *_: np.where(step < 7, 1e-2, 1e-4))
    policy = Policy.fit(levels, num_updates=50)
    cells = calibration.cells
    held = np.random.default_rng(0).permutation(CELLS) % 5 == 0
    found = policy.predicted[cells.step, cells.site, cells.age - 1][held]
    expected = spearman(found, levels.cells.error[held])
    assert policy.held_out["rank correlation"] == pytest.approx(expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_policy_fit_measurement_that_is_not_finite_is_a_schedule_error(calibration, value):
    error = calibration.cells.error.copy()
    error[7] = value
    with pytest.raises(ScheduleError):
        Policy.fit(with_errors(calibration, lambda *_: error), num_updates=5)


# ---- seeds and random numbers ------------------------------------------------------------


def test_policy_fit_is_the_same_for_a_seed_and_another_for_another(calibration):
    one, again, other = (
        Policy.fit(calibration, seed=seed, num_updates=15) for seed in (4, 4, 5)
    )
    assert np.array_equal(one.predicted, again.predicted)
    assert one.held_out == again.held_out
    assert all(torch.equal(value, again.weights[name]) for name, value in one.weights.items())
    assert not np.array_equal(one.predicted, other.predicted)


def test_policy_fit_does_not_depend_on_torchs_random_numbers(calibration):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(Policy.fit(calibration, num_updates=10).predicted)
    assert np.array_equal(*found)


def test_policy_fit_leaves_torchs_random_numbers_and_gradients_alone(calibration):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with torch.no_grad():
        Policy.fit(calibration, num_updates=10)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)


def test_policy_fit_seeds_no_other_device(calibration):
    with mock.patch("torch.cuda.manual_seed_all") as seeded:
        Policy.fit(calibration, num_updates=1)
    assert not seeded.called


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_policy_fit_without_gradients_learns_the_same(calibration, mode):
    plain = Policy.fit(calibration, num_updates=10)
    with mode():
        assert np.array_equal(
            Policy.fit(calibration, num_updates=10).predicted, plain.predicted
        )


# ---- arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [0, 49])
def test_policy_fit_too_few_cells_says_how_to_get_more(cells):
    with pytest.raises(ScheduleError) as caught:
        Policy.fit(smooth_calibration(cells=cells))
    assert str(caught.value) == (
        f"a policy needs at least 50 cells to learn from, found {cells}. Calibrate with "
        "cells_per_step=12 or more"
    )


def test_policy_fit_just_enough_cells_accepted():
    policy = Policy.fit(smooth_calibration(cells=50), num_updates=5)
    assert policy.predicted.shape == (STEPS, SITES, MAX_AGE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1, found 0"),
        ({"num_updates": 0}, "num_updates must be at least 1, found 0"),
        ({"num_updates": 2.5}, "num_updates must be an integer, found 2.5"),
    ],
)
def test_policy_fit_argument_out_of_range_named(calibration, given, message):
    with pytest.raises(ScheduleError) as caught:
        Policy.fit(calibration, **given)
    assert str(caught.value) == message


# ---- files -------------------------------------------------------------------------------


def test_policy_saved_and_loaded_is_the_same(policy, tmp_path):
    policy.save(tmp_path / "new" / "folder")
    again = Policy.load(tmp_path / "new" / "folder")
    assert again.sites == policy.sites
    assert again.held_out == policy.held_out
    assert again.predicted.dtype == np.float64
    assert np.array_equal(again.predicted, policy.predicted)
    assert list(again.weights) == sorted(policy.weights)
    for name, value in policy.weights.items():
        assert again.weights[name].dtype == value.dtype == torch.float64
        assert torch.equal(again.weights[name], value)
    assert again.fingerprint.model == policy.fingerprint.model
    assert torch.equal(again.fingerprint.values, policy.fingerprint.values)


def test_policy_saved_with_its_table_runs_from_the_table_alone(policy, tmp_path):
    table = policy_gate(policy, 2e-3).resolve(policy.sites)
    policy.save(tmp_path, table)
    loaded = BranchTable.load(tmp_path / "table.json")
    assert loaded == table
    assert Schedule.from_actions(loaded.actions).resolve(policy.sites) == table
    assert policy_gate(Policy.load(tmp_path), 2e-3).resolve(policy.sites) == table


def test_policy_saved_without_a_table_writes_two_files(policy, tmp_path):
    policy.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
    facts = json.loads((tmp_path / "policy.json").read_text())
    assert facts["features"] == ["log10 SNR", "depth", "entropy", "log10 change", "age"]


def test_policy_load_missing_names_both_files(tmp_path):
    with pytest.raises(ScheduleError) as caught:
        Policy.load(tmp_path / "nowhere")
    message = str(caught.value)
    assert message.startswith(f"no policy can be read from {tmp_path}/nowhere: FileNotFound")
    assert message.endswith(
        "Expected policy.json and policy.safetensors, as save(folder) writes them"
    )


def test_policy_load_lacking_an_array_names_it(policy, calibration, tmp_path):
    policy.save(tmp_path)
    calibration.save(tmp_path)
    (tmp_path / "calibration.safetensors").rename(tmp_path / "policy.safetensors")
    with pytest.raises(ScheduleError, match="the policy lacks 'predicted'"):
        Policy.load(tmp_path)


def test_policy_load_of_a_calibration_is_a_schedule_error(calibration, tmp_path):
    calibration.save(tmp_path)
    with pytest.raises(ScheduleError, match="no policy can be read"):
        Policy.load(tmp_path)


def test_policy_fit_of_a_loaded_calibration_is_the_same(calibration, tmp_path):
    calibration.save(tmp_path)
    one, two = (
        Policy.fit(each, num_updates=10) for each in (calibration, Calibration.load(tmp_path))
    )
    assert np.array_equal(one.predicted, two.predicted)
