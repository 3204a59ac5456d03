"""Pictures are judged by what applies to them, and no number hides a wrong input."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTPipeline
from PIL import Image

from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import Task
from benchmarks.quality.field_metrics import (
    ClipScore,
    TensorClip,
    find_pictures,
    needs_extra,
    read_picture,
    to_bytes,
)
from benchmarks.quality.frechet import to_unit
from benchmarks.quality.images import to_fashion
from benchmarks.quality.judge import NUM_FLOORS, AgainstReal, Judge, judge_for, measure_psnr_db
from benchmarks.quality.perceptual import FeatureDistance, measure_ssim
from benchmarks.reference import PIPELINE
from benchmarks.reference.classifier import CLASSIFIER, CONFIG, load_classifier
from benchmarks.reference.data import DEFAULT_FOLDER, FOLDER_VARIABLE, LABELS, load_split

needs_fashion = pytest.mark.skipif(
    not Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).is_dir(),
    reason="needs the Debian package dataset-fashion-mnist",
)


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine, threads that wait for each other are many times slower than one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def pipe():
    pipe = DiTPipeline.from_pretrained(PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judge(pipe):
    return judge_for(pipe)


@pytest.fixture(scope="module")
def drawings():
    """Twenty pictures of bright boxes on black, which need no data set."""
    rng = torch.Generator().manual_seed(0)
    images = torch.zeros(20, 1, 28, 28)
    for image in images:
        top, left = torch.randint(2, 14, (2,), generator=rng).tolist()
        level, height, width = torch.rand(3, generator=rng).tolist()
        box = image[0, top : top + 4 + int(9 * height), left : left + 4 + int(9 * width)]
        box.fill_(0.3 + 0.6 * level)
    return images


def add_noise(images, scale):
    rng = torch.Generator().manual_seed(1)
    return (images + scale * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def blur(images, pixels):
    offsets = torch.arange(-6, 7)
    kernel = torch.exp(-0.5 * (offsets / pixels).square())
    kernel = torch.outer(kernel, kernel) / kernel.sum().square()
    padded = F.pad(images, (6,) * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None]).clamp(0, 1)


def ssim_by_hand(a, b):
    """One grey picture, straight from the formula, window by window."""
    a, b = (np.pad(each, 5, mode="reflect") for each in (a, b))
    offsets = np.arange(-5, 6)
    window = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = (each[top : top + 11, left : left + 11] for each in (a, b))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (
                (window * (x - mean_x) ** 2).sum(),
                (window * (y - mean_y) ** 2).sum(),
            )
            cov = (window * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
            values.append(luminance * (2 * cov + 9e-4) / (var_x + var_y + 9e-4))
    return np.mean(values)


def test_ssim_is_one_for_equal_pictures_only(drawings):
    assert measure_ssim(drawings, drawings) == pytest.approx(1, abs=1e-12)
    assert measure_ssim(add_noise(drawings, 0.01), drawings) < 0.99


def test_ssim_agrees_with_the_formula():
    rng = np.random.default_rng(0)
    a = rng.random((2, 1, 12, 14))
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)
    expected = np.mean([ssim_by_hand(x[0], y[0]) for x, y in zip(a, b, strict=True)])
    found = measure_ssim(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measure", ["ssim", "lpips"])
def test_distances_are_means_over_any_number_of_pictures(drawings, measure):
    measure = {"ssim": measure_ssim, "lpips": FeatureDistance(load_classifier()).measure}[
        measure
    ]
    many = drawings.repeat(7, 1, 1, 1)  # 140: more than one batch, the last one partial
    noisy = add_noise(many, 0.05)
    single = [measure(noisy[i : i + 1], many[i : i + 1]) for i in range(len(many))]
    assert measure(noisy, many) == pytest.approx(sum(single) / len(many), rel=1e-4)


@pytest.mark.parametrize(
    ("damage", "scales"),
    [(add_noise, (0.01, 0.03, 0.1, 0.3)), (blur, (0.4, 0.7, 1.5, 3))],
    ids=["noise", "blur"],
)
def test_distances_grow_with_damage(judge, drawings, damage, scales):
    found = [judge.compare(damage(drawings, scale), drawings) for scale in scales]
    assert sorted(found, key=lambda each: each.lpips) == found
    assert sorted(found, key=lambda each: -each.ssim) == found
    assert sorted(found, key=lambda each: -each.psnr_db) == found
    assert 0 < found[0].lpips < 0.5 * found[-1].lpips


def test_equal_pictures_have_no_distance(judge, drawings):
    found = judge.compare(drawings, drawings)
    assert (found.psnr_db, found.lpips) == (math.inf, 0)
    assert found.ssim == pytest.approx(1, abs=1e-12)


def test_feature_distance_has_the_formula(drawings):
    net = load_classifier()
    noisy = add_noise(drawings, 0.1)
    expected = 0.0
    maps = zip(net.maps(drawings * 2 - 1), net.maps(noisy * 2 - 1), strict=True)
    for a, b in maps:
        a, b = (each / each.norm(dim=1, keepdim=True).clamp(min=1e-12) for each in (a, b))
        expected += (a - b).square().sum(dim=1).mean().item()
    found = FeatureDistance(net).measure(noisy, drawings)
    assert found == pytest.approx(expected, rel=1e-5)


def test_psnr_is_of_all_pictures_together(judge, drawings):
    other = add_noise(drawings, 0.1)
    assert judge.compare(other, drawings).psnr_db == measure_psnr_db(other, drawings)


@needs_fashion
def test_agreement_of_real_pictures_is_the_stated_accuracy(judge):
    # Of 2,000 of them; of all in the tests of the classifier.
    test = load_split("test")
    images, labels = to_unit(test.images[:2000]), test.labels[:2000].tolist()
    found = judge.against_real(images, labels)
    stated = json.loads((CLASSIFIER / CONFIG).read_text())["test_accuracy"]
    assert found.agreement == pytest.approx(stated, abs=0.015)
    # Real pictures, only not with the classes in turn as those of the floor.
    assert found.frechet == pytest.approx(judge.frechet.floor(2000), rel=0.5)


def test_judge_of_the_reference_pipeline_knows_all_metrics(pipe, judge):
    assert (judge.frechet_name, judge.lpips_name) == ("FD-FashionCNN", "LPIPS-FashionCNN")
    task = Task.of(pipe, 10, guidance=1.5)
    images = task.generate(pipe, 8)
    found = judge.against_real(images, task.labels)
    wrong = judge.against_real(images, task.labels[1:] + task.labels[:1])
    assert found.frechet > 0
    assert found.agreement > 0.5 > wrong.agreement
    assert found.frechet == wrong.frechet


@needs_fashion
def test_floors_are_of_as_many_real_pictures(judge, drawings):
    floors = judge.draw_floors(len(drawings))
    assert floors[:2] == tuple(judge.frechet.floor(len(drawings), seed) for seed in (0, 1))
    assert len({*floors}) == len(floors) == NUM_FLOORS
    assert judge.against_real(drawings, [0] * len(drawings)).frechet > max(floors)


def fake_pipe(out_channels=1, sample_size=28, labels=LABELS):
    config = SimpleNamespace(out_channels=out_channels, sample_size=sample_size)
    return SimpleNamespace(
        vae=SimpleNamespace(config=config),
        labels={name: label for label, name in enumerate(labels)},
        transformer=SimpleNamespace(config=SimpleNamespace(num_embeds_ada_norm=10)),
    )


@pytest.mark.parametrize(
    "pipe",
    [fake_pipe(out_channels=3), fake_pipe(sample_size=32), fake_pipe(labels=("cat", "dog"))],
    ids=["colour", "size", "labels"],
)
def test_judge_of_other_pipelines_knows_psnr_and_ssim(pipe):
    judge = judge_for(pipe)
    assert judge == Judge()
    assert (judge.frechet_name, judge.lpips_name) == (None, None)
    images = torch.rand(2, 3, 64, 48)
    found = judge.compare(images, images)
    assert (found.psnr_db, found.lpips) == (math.inf, None)
    assert found.ssim == pytest.approx(1, abs=1e-12)
    assert judge.against_real(images, [0, 1]) == AgainstReal(None, None, None)
    assert judge.draw_floors(2) == ()


def test_three_equal_channels_are_judged_as_grey(judge, drawings):
    labels = [0] * len(drawings)
    grey, colour = (
        judge.against_real(images, labels)
        for images in (drawings, drawings.expand(-1, 3, -1, -1))
    )
    assert grey == colour
    assert torch.equal(to_fashion(drawings.expand(-1, 3, -1, -1)), drawings * 2 - 1)


WRONG = {
    "shape": (torch.rand(4, 28, 28), r"expected pictures of .* found torch.float32 of shape"),
    "bytes": (torch.zeros(4, 1, 28, 28, dtype=torch.uint8), "found torch.uint8"),
    "none": (torch.rand(0, 1, 28, 28), r"shape \[0, 1, 28, 28\]"),
    "range": (torch.rand(4, 1, 28, 28) * 2 - 1, r"values in \[0, 1\], found -"),
    "nan": (torch.full((4, 1, 28, 28), math.nan), "found nan to nan"),
    "size": (torch.rand(4, 1, 32, 32), "grey pictures of 28x28"),
    "channels": (torch.rand(4, 2, 28, 28), "grey pictures of 28x28"),
    "colour": (torch.rand(4, 3, 28, 28), "in colour"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_pictures_are_one_clear_error(judge, case):
    images, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        judge.against_real(images, [0] * len(images))
    with pytest.raises(InputError, match=message):
        judge.compare(images, images)


def test_wrong_numbers_of_pictures_are_clear_errors(judge, drawings):
    with pytest.raises(InputError, match="20 pictures but 19 labels"):
        judge.against_real(drawings, [0] * 19)
    with pytest.raises(InputError, match=r"\[20, 1, 28, 28\] cannot be compared .*\[19, 1,"):
        judge.compare(drawings, drawings[1:])


def test_extra_metrics_are_refused_where_they_do_not_apply(pipe, tmp_path):
    for options in ({"extra": True}, {"real": tmp_path}):
        with pytest.raises(InputError, match="judged by FashionCNN"):
            judge_for(pipe, **options)


def test_extra_that_is_not_installed_is_named():
    no_package = pytest.raises(InputError, match=r'FID needs the extra "metrics": pip install')
    with no_package, needs_extra("FID"):
        raise ModuleNotFoundError("No module named 'torch_fidelity'")
    no_route = pytest.raises(InputError, match="network of FID could not be fetched: no route")
    with no_route, needs_extra("FID"):
        raise OSError("no route")


def test_fid_reads_the_pictures_of_a_folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    for name, image in zip(("b.png", "a.PNG"), pixels, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    files = find_pictures(tmp_path)
    assert [file.name for file in files] == ["a.PNG", "b.png"]
    images = torch.cat([read_picture(file) for file in files])
    assert torch.equal(images, torch.from_numpy(pixels[::-1].copy()).permute(0, 3, 1, 2))
    assert torch.equal(to_bytes(images / 255), images)
    files[0].unlink()
    with pytest.raises(InputError, match=r"holds 1 pictures: FID needs a folder"):
        judge_for(fake_pipe(out_channels=3), real=tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.png cannot be read"):
        read_picture(tmp_path / "b.png")


class ToyClip(torch.nn.Module):
    """As CLIP in transformers 5: features inside of an output; here, mean and peak colours."""

    config = SimpleNamespace()

    def get_image_features(self, pixels):
        return SimpleNamespace(pooler_output=pixels.float().mean(dim=(2, 3)))

    def get_text_features(self, ids, mask):
        return SimpleNamespace(pooler_output=ids.float())


def process(images=None, text=None, **_):
    """The processor: captions are colours."""
    if images is not None:
        return {"pixel_values": torch.stack(images)}
    colours = {"red": [1, 0, 0], "green": [0, 1, 0]}
    ids = torch.tensor([colours[word] for word in text])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_clip_score_takes_the_outputs_of_transformers_and_each_caption(monkeypatch):
    monkeypatch.setattr(
        "benchmarks.quality.field_metrics.load_clip", lambda: (TensorClip(ToyClip()), process)
    )
    images = torch.zeros(20, 3, 8, 8)
    images[:15, 0], images[15:, 1] = 1, 1
    captions = ["red"] * 15 + ["green"] * 5
    clip = ClipScore()
    assert clip.score(images, captions) == pytest.approx(100)
    assert clip.score(images, ["red"] * 20) == pytest.approx(75)
    judge = replace(Judge(), clip=clip, captions={0: "red", 1: "green"})
    found = judge.against_real(images, [0] * 15 + [1] * 5)
    assert found.clip_score == pytest.approx(100)
    with pytest.raises(InputError, match="20 pictures but 1 captions"):
        clip.score(images, ["red"])
