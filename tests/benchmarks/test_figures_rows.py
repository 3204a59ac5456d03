"""What figures are drawn from: pairs of errors, rows, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.figures import pairs, speed
from benchmarks.harness.rows import to_line
from dqar_fx import Calibration
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


@pytest.mark.parametrize(("factor", "share"), [(0.8, 1.0), (1.25, 0.0), (1.0, 0.5)])
def test_mismatch_pairs_have_the_share_and_median_of_the_data(factor, share):
    sites, denoiser = pairs.read_pairs(made_calibration(factor))
    for each in (sites, denoiser):
        assert each.share_better == pytest.approx(share, abs=0.1)
        assert each.quartiles[1] == pytest.approx(factor, rel=0.01)


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
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("", "holds no rows of the ablation"),
        ('{"name": "baseline"}\n', "holds no rows of the ablation"),
        (to_line(replace(BASELINE, speed_median=None)), "without --no-time"),
    ],
)
def test_speed_rows_damaged_are_refused(text, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(speed.RowsError, match=message) as caught:
        speed.read_timed_rows(tmp_path)
    assert "python -m benchmarks.ablation" in str(caught.value)


def test_speed_row_says_why_there_is_no_psnr():
    fewer = make_row("38 steps", keep=None, steps=38, psnr_db=None)
    near = make_row("x", psnr_db=17.66)
    assert speed.label_row(make_row("x", psnr_db=None))[1] == "not measured"
    assert speed.label_row(fewer)[1] == "none (other noise)"
    assert speed.label_row(near) == ("1.20x (1.10 to 1.30)", "17.7 dB")
