"""The figures are drawn from what was measured: files, titles, boxes, errors."""

import json
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import dqar_fx
from benchmarks.figures import architecture, job, pairs, quality, reuse, rows, speed
from benchmarks.figures.boxes import CONDITIONING, INPUT, OUTPUT, SLOT
from benchmarks.figures.job import main
from benchmarks.figures.layout import HEIGHT, lay_out
from benchmarks.figures.options import FIGURES
from benchmarks.figures.style import (
    DPI,
    Drawn,
    new_figure,
    read_captions,
    styled,
    write_captions,
    write_figure,
)
from benchmarks.figures.variants import read_variants
from benchmarks.geometry import Geometry
from benchmarks.macs import count_trajectories
from benchmarks.reference import PIPELINE
from dqar_fx import Action, Calibration, Schedule
from dqar_fx.calibration import Cells
from dqar_fx.fingerprint import Fingerprint

SVG = "{http://www.w3.org/2000/svg}"
STEPS = 30
"""So many that two sites give the policy enough to learn from."""


def make_row(name, **values):
    plain = {
        "name": name,
        "steps": 50,
        "keep": "output",
        "cache": "fp16",
        "reuse_ratio": 0.5,
        "speed_median": 1.2,
        "speed_min": 1.1,
        "speed_max": 1.3,
        "ceiling": 1.25,
        "psnr_db": 33.0,
        "repeats": 5,
    }
    return plain | values


BASELINE = make_row(
    "baseline", keep=None, speed_median=1.0, speed_min=1.0, speed_max=1.0, psnr_db="inf"
)


def write_rows(folder, made):
    folder.mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in made)
    (folder / "rows.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """The reference pipeline, cut down to its first two blocks."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    shutil.copytree(PIPELINE, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2}))
    return str(folder)


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """All figures of the small model: their folder, and the exit code."""
    out = tmp_path_factory.mktemp("figures")
    fewer = make_row("38 steps", keep=None, steps=38, psnr_db=None)
    far = make_row("scheduling_only", speed_median=1.4, speed_max=1.5, psnr_db=17.7)
    ablation = write_rows(out / "ablation", [BASELINE, far, make_row("full_dqar"), fewer])
    arguments = ["--quick", "--steps", str(STEPS), "--model", small_model, "--out", str(out)]
    return out, main([*arguments, "--ablation", str(ablation)])


@pytest.fixture(scope="module")
def tiny():
    """A denoiser of three blocks with random weights, and its model."""
    geometry = Geometry(layers=3, width=16, heads=2, tokens=16, batch=2)
    model = geometry.build().eval()
    call = {
        "hidden_states": geometry.draw_latent(),
        "timestep": torch.zeros(2, dtype=torch.long),
        "class_labels": geometry.labels(),
    }
    schedule = Schedule.from_actions("CSRR")
    return dqar_fx.transform(model, schedule, example_inputs=call), model, call


# ---- the whole command ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_figures_quick_writes_pictures_that_show_something(finished, name):
    out, code = finished
    assert code == 0
    with Image.open(out / f"{name}.png") as image:
        assert min(image.size) > 5 * DPI
        pixels = np.asarray(image.convert("L"), np.float64)
    assert (pixels > 250).mean() > 0.3  # a light background
    assert (pixels < 120).mean() > 0.005  # and ink on it


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("speed", ["PSNR 17.7 dB", "the pictures to compare with", "1.40x (1.10 to 1.50)"]),
        ("reuse", ["transformer_blocks.1.attn1", "sites that reuse (% of all)"]),
        ("quality", ["T-shirt/top", "quant_cache_only", "seed 42"]),
        ("architecture", ["attn1.to_q", "scaled_dot_product_attention", "removed", "slot"]),
        ("mismatch", ["kept K and V", "age (steps since it was kept)", "reuses tried"]),
    ],
)
def test_figures_svg_holds_its_words_as_text(finished, name, texts):
    root = ElementTree.parse(finished[0] / f"{name}.svg").getroot()
    assert root.tag == f"{SVG}svg"
    found = " ".join("".join(each.itertext()) for each in root.iter(f"{SVG}text"))
    assert not [text for text in texts if text not in found]
    assert "dc:date" not in (finished[0] / f"{name}.svg").read_text()


def test_figures_page_has_a_paragraph_per_figure(finished):
    captions = read_captions(finished[0] / "figures.md")
    assert tuple(captions) == FIGURES
    assert all(text.startswith(f"![{name}]({name}.png)") for name, text in captions.items())
    assert all(len(text.split("\n\n")) == 2 for text in captions.values())


def test_figures_calibration_is_read_again(finished, small_model, tmp_path, capsys):
    folder = finished[0] / "calibration"
    arguments = ["--only", "mismatch", "--model", small_model, "--calibration", str(folder)]
    sized = [*arguments, "--steps", str(STEPS), "--samples", "1", "--out", str(tmp_path)]
    assert main(sized) == 0
    assert f"the calibration is that of {folder}" in capsys.readouterr().err
    same = [(path / "mismatch.svg").read_bytes() for path in (finished[0], tmp_path)]
    assert same[0] == same[1]
    assert main([*sized, "--steps", "9"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --calibration {folder} has {STEPS} steps, but --steps")


def test_figures_without_ablation_draws_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(job.DRAW, "reuse", lambda _: Drawn(new_figure("T", 3, 2), "caption"))
    missing = tmp_path / "none"
    arguments = ["--only", "speed", "reuse", "--ablation", str(missing)]
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert len(errors) == 1
    assert f"make it with python -m benchmarks.ablation --out {missing}" in errors[0]
    assert (tmp_path / "reuse.png").exists()
    assert not (tmp_path / "speed.png").exists()
    assert tuple(read_captions(tmp_path / "figures.md")) == ("reuse",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "argument --steps: expected an integer of at least 4, found '3'"),
        (["--samples", "none"], "argument --samples: expected an integer of at least 1"),
        (["--only", "table"], "argument --only: invalid choice: 'table'"),
        (["--scheduler", "slow"], "argument --scheduler: invalid choice"),
        (["--out", "{file}"], "argument --out: cannot write to "),
        (["--model", "{file}", "--only", "architecture"], "is no pipeline: expected"),
        (["--only", "quality", "--labels", "5000"], "--labels 5000: the pipeline has 10 cl"),
    ],
)
def test_figures_bad_input_is_one_line_and_code_2(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    arguments = [a.replace("{file}", str(file)) for a in arguments]
    try:
        code = main(["--out", str(tmp_path), *arguments])
    except SystemExit as exit:
        code = exit.code
    err = [line for line in capsys.readouterr().err.splitlines() if "drawing" not in line]
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert message in err[0]


# ---- style ----------------------------------------------------------------------------------


def test_write_figure_twice_gives_the_same_bytes_in_the_asked_size(tmp_path):
    def draw(folder):
        folder.mkdir()
        with styled():
            figure = new_figure("Two words " * 20, 6, 3)
            figure.subplots().plot([1, 2, 3])
            return [path.read_bytes() for path in write_figure(Drawn(figure, ""), folder, "x")]

    assert draw(tmp_path / "a") == draw(tmp_path / "b")
    with Image.open(tmp_path / "a" / "x.png") as image:
        assert image.size == (6 * DPI, 3 * DPI)


def test_write_captions_keeps_those_of_earlier_runs(tmp_path):
    page = tmp_path / "figures.md"
    write_captions({"b": "old", "a": "first"}, ("a", "b"), page)
    write_captions({"b": "new"}, ("a", "b"), page)
    assert page.read_text() == (
        "# Figures\n\n## a\n\n![a](a.png)\n\nfirst\n\n## b\n\n![b](b.png)\n\nnew\n"
    )


# ---- titles ---------------------------------------------------------------------------------


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
        (0.8, "gives a smaller error in 100% of reuses (median 20% lower) at equal age: the "),
        (1.25, "gives a larger error in 100% of reuses (median 25% higher) at equal age: as "),
        (1.0, "gives no clear difference: a smaller error in "),
    ],
)
def test_mismatch_title_follows_the_data(factor, said):
    sites, denoiser = pairs.read_pairs(made_calibration(factor))
    assert said in pairs.make_title(denoiser)
    assert pairs.judge(sites)[:9] == pairs.judge(denoiser)[:9]
    ends = {0.8: "the opposite of what the report says", 1.25: "as the report says"}
    end = ends.get(factor, "which does not bear the report out")
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
            "but its pictures are far from the baseline's (PSNR 18.0 dB); of ",
        ),
        ({"psnr_db": 41.0}, "and its pictures stay near the baseline's (PSNR 41.0 dB)"),
        (
            {"psnr_db": None},
            "full_dqar is the fastest that reuses attention, 1.90x as fast as",
        ),
    ],
)
def test_speed_title_follows_the_data(best, said):
    made = [BASELINE, make_row("slow"), make_row("full_dqar", speed_median=1.9, **best)]
    assert said in rows.make_title(made)


def test_speed_title_without_near_pictures_or_reuse():
    far = [make_row(name, psnr_db=12.0) for name in ("a", "b")]
    assert rows.make_title([BASELINE, *far]).endswith("and no other's are near")
    assert rows.make_title([BASELINE]) == (
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


def test_speed_bar_says_where_there_is_no_psnr():
    assert speed.label_quality(make_row("x", psnr_db=None)) == "no PSNR"
    fewer = make_row("38 steps", keep=None, psnr_db=None)
    assert speed.label_quality(fewer) == "other noise: no PSNR"
    assert speed.describe(fewer, BASELINE) == "untransformed"
    assert speed.describe(make_row("x", keep="kv"), BASELINE) == (
        "keys and values in fp16, 50% reused"
    )


def test_quality_title_follows_the_data():
    strip = quality.Strip("baseline", "", torch.zeros(1, 1, 2, 2), (float("inf"),), 99.0)
    near = replace(strip, name="near", whole_db=40.0)
    far = replace(strip, name="far", whole_db=10.0)
    assert quality.make_title([strip, far, near]).endswith(
        "near stays nearest to the untransformed pictures (40.0 dB), far strays farthest "
        "(10.0 dB)"
    )


def test_reuse_title_follows_the_table():
    sites = [f"b.{i}.attn" for i in range(4)]
    title = reuse.make_title(Schedule.linear(20, 5).resolve(sites))
    assert "computes everything up to step 4; then" in title
    assert "until all reuse from step 12 on, in 57% of all cells" in title
    assert "nothing" in reuse.make_title(Schedule.linear(4, 5).resolve(sites))


# ---- architecture ---------------------------------------------------------------------------


def test_architecture_boxes_are_modules_of_the_model(tiny):
    denoiser, model, _ = tiny
    variants = read_variants(denoiser)
    block = model.transformer_blocks[1]
    for variant in variants:
        for name, level in variant.boxes:
            if name not in (INPUT, OUTPUT, CONDITIONING, SLOT, "block"):
                assert block.get_submodule(name) is not None
                assert level > 0


def test_architecture_reuse_lacks_the_projections(tiny):
    stored, computed, reused = read_variants(tiny[0])
    assert [v.action for v in (stored, computed, reused)] == [
        Action.STORE,
        Action.COMPUTE,
        Action.REUSE,
    ]
    assert set(stored.boxes) - set(computed.boxes) == {(SLOT, 0)}
    assert {name for name, _ in set(stored.boxes) - set(reused.boxes)} == {
        "norm1",
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1",
        "attn1.to_out",
    }
    assert set(reused.boxes) < set(stored.boxes)
    assert reused.boxes[SLOT, 0].operators == ()
    writers = [start[0] for start, end in stored.edges if end[0] == SLOT]
    readers = [end[0] for start, end in reused.edges if start[0] == SLOT]
    assert (writers, readers) == (["attn1.to_out"], ["block"])


@torch.no_grad()
def test_architecture_macs_are_those_of_the_trajectory(tiny):
    denoiser, model, call = tiny
    _, computed, reused = read_variants(denoiser)
    schedules = [Schedule.from_actions(actions) for actions in ("SR", "CC")]
    once, never = count_trajectories(model, call, schedules).trajectories
    assert computed.macs - reused.macs == (never - once) // 3
    attention = computed.boxes["attn1", 3]
    assert attention.macs == 2 * 2 * 2 * 16 * 16 * 8  # batch, heads, two products


def test_architecture_layout_overlaps_nowhere_and_points_down(tiny):
    variants = read_variants(tiny[0])
    layout = lay_out(variants)
    placed = list(layout.places.items())
    for i, (_, a) in enumerate(placed):
        for _, b in placed[i + 1 :]:
            apart = abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= HEIGHT
            assert apart
    for start, end in variants[0].edges:
        if SLOT not in (start[0], end[0]) and start[0] != CONDITIONING:
            assert layout.places[start].y > layout.places[end].y
    assert sorted(layout.lanes.values()) == [0, 0]  # the two residual connections, one by one
    assert len(placed) <= 25


def test_architecture_describes_operators_and_views(tiny):
    _, computed, _ = read_variants(tiny[0])
    assert architecture.describe_box(computed.boxes["attn1", 3]) == [
        "scaled_dot_product_attention",
        "8 views, 0.0 M MACs",
    ]
    assert architecture.describe_box(computed.boxes["norm1", 1]) == ["layer_norm, mul, add"]
    assert architecture.show_macs(2_500_000_000) == "2.5 G"
