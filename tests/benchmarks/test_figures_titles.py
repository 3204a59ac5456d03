"""Titles, captions and labels of the figures follow what was measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.figures import pairs, quality, reuse, rows, speed
from benchmarks.figures.strips import Strip
from dqar_fx import Calibration, Schedule
from dqar_fx.calibration.calibration import Cells
from dqar_fx.calibration.fingerprint import Fingerprint
from tests.benchmarks.figure_rows import BASELINE, make_row


def made_calibration(kv_factor, num_cells=300, num_steps=30, num_sites=4, max_age=5):
    """A calibration whose keys and values err by a factor of what outputs do."""
    rng = np.random.default_rng(0)
    step = rng.integers(max_age, num_steps, num_cells)
    site, age = rng.integers(0, num_sites, num_cells), rng.integers(1, max_age + 1, num_cells)
    change = rng.uniform(0.01, 0.02, (num_steps, num_sites, max_age))
    error = 1e-3 * age * rng.uniform(0.9, 1.1, num_cells)
    factor = kv_factor * rng.uniform(0.97, 1.03, num_cells)
    own = change[step, site, age - 1]
    cells = Cells(step, site, age, error, factor * error, factor * own)
    return Calibration(
        sites=tuple(f"b.{i}.attn" for i in range(num_sites)),
        snr=np.geomspace(1e-3, 1e3, num_steps),
        entropy=rng.uniform(0.5, 1, (num_steps, num_sites)),
        change=change,
        cells=cells,
        fingerprint=Fingerprint("M", "", torch.empty(0)),
        samples=1,
    )


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (0.8, "gives a smaller error in 100% of reuses (median 20% lower) at equal age: "),
        (1.25, "gives a larger error in 100% of reuses (median 25% higher) at equal age: "),
        (1.0, "gives no clear difference: a smaller error in "),
    ],
)
def test_mismatch_title_follows_the_data(factor, said):
    sites, denoiser = pairs.read_pairs(made_calibration(factor))
    assert said in pairs.make_title(denoiser)
    assert pairs.judge(sites)[:9] == pairs.judge(denoiser)[:9]
    ends = {0.8: "warns of does not show", 1.25: "warns of shows"}
    end = ends.get(factor, "warns of makes no difference")
    assert pairs.make_title(denoiser).endswith(end)


def test_mismatch_pairs_leave_out_what_was_not_tried():
    calibration = made_calibration(1.1)
    calibration.cells.kv_error[::2] = np.nan
    sites, denoiser = pairs.read_pairs(calibration)
    assert len(sites.ratio) == len(denoiser.ratio) == 150
    assert set(denoiser.third.tolist()) == {0, 1, 2}
    np.testing.assert_allclose(denoiser.ratio, 1.1, rtol=0.04)
    calibration.cells.kv_error[:] = np.nan
    with pytest.raises(ValueError, match="no reuse of keys and values to compare"):
        pairs.read_pairs(calibration)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (
            {"psnr_db": 18.0},
            "but with pictures far from the baseline's (PSNR 18.0 dB); of those that stay ",
        ),
        ({"psnr_db": 41.0}, "and its pictures stay near the baseline's (PSNR 41.0 dB)"),
        (
            {"psnr_db": None},
            "Reusing attention gains at most 1.90x (full_dqar)",
        ),
    ],
)
def test_speed_title_follows_the_data(best, said):
    made = [BASELINE, make_row("slow"), make_row("full_dqar", speed_median=1.9, **best)]
    assert said in speed.make_title(made)


def test_speed_title_without_near_pictures_or_reuse():
    far = [make_row("a", psnr_db=12.0), make_row("b", psnr_db=13.0, speed_median=1.1)]
    title = speed.make_title([BASELINE, *far])
    assert title.endswith("(PSNR 12.0 dB); b comes nearest (13.0 dB), at 1.10x")
    assert speed.make_title([BASELINE]) == (
        "No configuration that reuses attention has been timed"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("", "holds no rows of the ablation"),
        ('{"name": "baseline"}\n', "holds no rows of the ablation"),
        (json.dumps(BASELINE | {"speed_median": None}), "without --no-time"),
    ],
)
def test_speed_rows_damaged_are_refused(text, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(rows.RowsError, match=message) as caught:
        rows.read_timed_rows(tmp_path)
    assert "python -m benchmarks.ablation" in str(caught.value)


def test_speed_row_says_why_there_is_no_psnr():
    fewer = make_row("38 steps", keep=None, steps=38, psnr_db=None)
    assert rows.label_quality(make_row("x", psnr_db=None)) == "not measured"
    assert rows.label_quality(fewer) == "none (other noise)"
    assert rows.label_quality(make_row("x", psnr_db=17.66)) == "17.7 dB"


def test_speed_row_says_what_is_kept_how_often_reused_and_how_old():
    fewer = make_row("38 steps", keep=None, steps=38)
    assert rows.describe(fewer) == "untransformed model, 38 steps"
    plain = make_row("x", keep="kv")
    assert rows.describe(plain) == "keys and values in fp16, 50% reused"
    aged = make_row("x", schedule="CSRRSR CCSRRR")
    assert rows.describe(aged) == "outputs in fp16, 50% reused, up to 3 steps old"
    assert rows.describe(make_row("x", schedule="CSR")).endswith("up to 1 step old")


def test_quality_title_follows_the_data():
    strip = Strip("baseline", "", torch.zeros(1, 1, 2, 2), (float("inf"),), 99.0)
    near = replace(strip, name="near", whole_db=40.0)
    far = replace(strip, name="far", whole_db=10.0)
    assert quality.make_title([strip, far, near]).endswith(
        "near stays nearest to the untransformed pictures (40.0 dB), far strays farthest "
        "(10.0 dB)"
    )


def test_reuse_title_follows_the_tables():
    sites = [f"b.{i}.attn" for i in range(4)]
    linear = Schedule.linear(20, 5).resolve(sites)
    early = Schedule.from_actions("S" + 9 * "R" + 10 * "C").resolve(sites)
    title = reuse.make_title(linear, early)
    assert "computes everything up to step 4 and reuses everything from step 12 on" in title
    assert title.endswith("reuses earlier (on average at step 5, not 13)")
    assert "reuses later" in reuse.make_title(early, linear)
    assert "nothing" in reuse.make_title(Schedule.linear(4, 5).resolve(sites), early)
