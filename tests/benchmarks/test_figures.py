"""The command that draws the figures: its files, its errors, and the style they share."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks.figures import job
from benchmarks.figures.head import new_figure
from benchmarks.figures.job import main, read_captions, write_captions
from benchmarks.figures.options import FIGURES
from benchmarks.harness.plots import DPI, Drawn, styled, write_figure
from benchmarks.harness.rows import write_rows
from tests.benchmarks.command_errors import refuse
from tests.benchmarks.cut_pipeline import cut_pipeline
from tests.benchmarks.figure_rows import BASELINE, make_row

pytestmark = pytest.mark.slow

SVG = "{http://www.w3.org/2000/svg}"
STEPS = 30
"""So many that two sites give the policy enough to learn from."""


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """The reference pipeline, cut down to its first two blocks."""
    return cut_pipeline(tmp_path_factory.mktemp("small") / "pipeline", num_layers=2)


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """All figures of the small model: their folder, and the exit code."""
    out = tmp_path_factory.mktemp("figures")
    fewer = make_row("38 steps", keep=None, steps=38, psnr_db=None)
    far = make_row("scheduling_only", speed_median=1.4, speed_max=1.5, psnr_db=17.7)
    ablation = out / "ablation"
    ablation.mkdir()
    made = [BASELINE, far, make_row("full_dqar"), fewer]
    write_rows(made, ablation / "rows.jsonl")
    arguments = ["--quick", "--steps", str(STEPS), "--model", small_model, "--out", str(out)]
    return out, main([*arguments, "--ablation", str(ablation)])


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


@pytest.mark.parametrize("name", FIGURES)
def test_figures_svg_holds_its_words_as_text(finished, name):
    root = ElementTree.parse(finished[0] / f"{name}.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert any("".join(each.itertext()).strip() for each in root.iter(f"{SVG}text"))
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
    monkeypatch.setitem(
        job.DRAW, "reuse", lambda _: Drawn(new_figure("T", "R", 3, 2), "caption")
    )
    missing = tmp_path / "none"
    arguments = ["--only", "speed", "reuse", "--ablation", str(missing)]
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert len(errors) == 1
    assert f"make it with python -m benchmarks.ablation --out {missing}" in errors[0]
    assert (tmp_path / "reuse.png").exists()
    assert not (tmp_path / "speed.png").exists()
    assert tuple(read_captions(tmp_path / "figures.md")) == ("reuse",)


def test_figures_without_any_writes_no_page(tmp_path, capsys):
    missing = ["--only", "speed", "--ablation", str(tmp_path / "none")]
    assert main([*missing, "--out", str(tmp_path / "out")]) == 1
    assert "is not there" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "--steps: expected an integer of at least 4, found '3'"),
        (["--samples", "none"], "--samples: expected an integer of at least 1"),
        (["--only", "table"], "--only: invalid choice 'table'"),
        (["--scheduler", "slow"], "--scheduler: invalid choice 'slow'"),
        (["--out", "{file}"], "error: cannot write to "),
        (["--calibration", "{file}"], "cannot write to "),
        (["--model", "{file}", "--only", "architecture"], "is no pipeline: expected"),
        (["--only", "quality", "--labels", "5000"], "--labels 5000: the pipeline has 10 cl"),
    ],
)
def test_figures_bad_input_is_said_with_code_2(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    arguments = [a.replace("{file}", str(file)) for a in arguments]
    code, error = refuse(main, ["--out", str(tmp_path), *arguments], capsys)
    assert code == 2
    assert message in error


# ---- style ----------------------------------------------------------------------------------


def test_write_figure_twice_gives_the_same_bytes_with_room_for_the_head(tmp_path):
    def draw(folder):
        folder.mkdir()
        with styled():
            figure = new_figure("Two words " * 20, "And how to read them.", 6, 3)
            figure.subplots().plot([1, 2, 3])
            return [path.read_bytes() for path in write_figure(Drawn(figure, ""), folder, "x")]

    assert draw(tmp_path / "a") == draw(tmp_path / "b")
    with Image.open(tmp_path / "a" / "x.png") as image:
        assert image.width == 6 * DPI
        assert 4 * DPI < image.height < 6 * DPI


def test_write_captions_keeps_those_of_earlier_runs(tmp_path):
    page = tmp_path / "figures.md"
    write_captions({"b": "old", "a": "first"}, ("a", "b"), page)
    write_captions({"b": "new"}, ("a", "b"), page)
    assert page.read_text() == (
        "# Figures\n\n## a\n\n![a](a.png)\n\nfirst\n\n## b\n\n![b](b.png)\n\nnew\n"
    )
