"""The Frechet distance is that of Gaussians, and its floor is that of real pictures."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.harness.errors import InputError
from benchmarks.quality.frechet import Frechet, draw_in_turn, gather_statistics
from benchmarks.reference.classifier import load_classifier
from benchmarks.reference.data import DEFAULT_FOLDER, FOLDER_VARIABLE, Split

needs_fashion = pytest.mark.skipif(
    not Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).is_dir(),
    reason="needs the Debian package dataset-fashion-mnist",
)


class FirstPixels(nn.Module):
    """A network whose features are the first two pixels, in [-1, 1]."""

    num_features = 2

    def features(self, images):
        return images.flatten(1)[:, :2]


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine, threads that wait for each other are many times slower than one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def fashion():
    return Frechet.load(load_classifier())


def draw(mean, covariance, *, num=500, seed=0):
    """Pictures whose first two pixels, in [-1, 1], have this mean and covariance exactly."""
    rng = torch.Generator().manual_seed(seed)
    white = torch.randn(num, 2, generator=rng, dtype=torch.float64)
    white -= white.mean(dim=0)
    white = torch.linalg.solve(torch.linalg.cholesky(white.T.cov()), white.T).T
    pixels = white @ torch.linalg.cholesky(covariance).T + mean
    images = torch.full((num, 1, 28, 28), 0.5, dtype=torch.float64)
    images[:, 0, 0, :2] = (pixels + 1) / 2
    return images


def expected_distance(mean, covariance, mean2, covariance2):
    """The closed form for two dimensions: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))."""
    product = covariance @ covariance2
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    distance = (mean - mean2).square().sum() + (covariance + covariance2).trace() - 2 * root
    return distance.item()


GAUSSIANS = {
    "same": (torch.tensor([0.1, -0.1]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "mean": (torch.tensor([0.3, 0.1]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "scale": (torch.tensor([0.1, -0.1]), torch.tensor([[8.0, 2.0], [2.0, 4.0]])),
    "turned": (torch.tensor([0.0, 0.2]), torch.tensor([[1.0, -0.7], [-0.7, 3.0]])),
}


@pytest.mark.parametrize("other", GAUSSIANS)
def test_distance_of_gaussians_has_the_closed_form(other):
    (mean, covariance), (mean2, covariance2) = (
        (mean.double(), 0.005 * covariance.double())
        for mean, covariance in (GAUSSIANS["same"], GAUSSIANS[other])
    )
    net = FirstPixels()
    real = gather_statistics(net, draw(mean, covariance))
    found = Frechet(net, real).distance(draw(mean2, covariance2, seed=1))
    expected = expected_distance(mean, covariance, mean2, covariance2)
    # Pictures reach the network in float32.
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (expected == pytest.approx(0, abs=1e-12)) is (other == "same")


def test_distance_of_equal_pictures_is_defined():
    mean, covariance = torch.zeros(2).double(), 0.01 * torch.eye(2).double()
    net = FirstPixels()
    frechet = Frechet(net, gather_statistics(net, draw(mean, covariance)))
    found = frechet.distance(torch.full((5, 1, 28, 28), 0.5))
    assert found == pytest.approx(0.02, rel=1e-4)  # the real ones' trace: no variance here


def test_distance_does_not_remember_other_pictures(fashion):
    rng = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 250, 1, 28, 28, generator=rng)
    before = fashion.distance(first)
    assert fashion.distance(second * 0.5) != before
    assert fashion.distance(first) == before


def test_distance_needs_two_pictures(fashion):
    with pytest.raises(InputError, match="FD-FashionCNN needs 2 pictures or more, found 1"):
        fashion.distance(torch.zeros(1, 1, 28, 28))


def test_floor_is_unknown_without_enough_real_pictures():
    images = Split(torch.zeros(20, 1, 28, 28), torch.arange(20) % 10)
    net = FirstPixels()
    real = gather_statistics(net, torch.rand(50, 1, 28, 28))
    assert Frechet(net, real).floor(10) is None
    assert Frechet(net, real, images).floor(21) is None
    assert Frechet(net, real, images).floor(20) > 0


def test_loading_without_the_data_says_that_there_is_no_floor(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    frechet = Frechet.load(load_classifier())
    assert "no floor of FD-FashionCNN" in capsys.readouterr().err
    assert frechet.floor(10) is None
    assert frechet.distance(torch.rand(20, 1, 28, 28)) > 0


def test_draws_take_turns_and_depend_on_the_seed():
    labels = torch.tensor([0] * 5 + [1] * 5 + [2] * 5)
    drawn = draw_in_turn(labels, seed=0)
    assert sorted(drawn.tolist()) == list(range(15))
    assert [sorted(each) for each in labels[drawn].view(5, 3).tolist()] == [[0, 1, 2]] * 5
    assert torch.equal(draw_in_turn(labels, seed=0), drawn)
    assert not torch.equal(draw_in_turn(labels, seed=1), drawn)


@needs_fashion
def test_floor_falls_with_the_number_of_pictures(fashion):
    few, more, many = (fashion.floor(num) for num in (100, 500, 2000))
    assert few > 2 * more > 4 * many > 0
    assert fashion.floor(500, seed=1) != more
    assert fashion.floor(500) == more


@needs_fashion
def test_distance_grows_with_noise_and_is_the_floor_without(fashion):
    split = fashion._held_out
    images = (split.images[draw_in_turn(split.labels, 0)[:500]] + 1) / 2
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=rng)
    found = [fashion.distance((images + s * noise).clamp(0, 1)) for s in (0, 0.02, 0.05, 0.2)]
    assert found[0] == fashion.floor(500)
    assert all(a * 1.2 < b for a, b in pairwise(found))
