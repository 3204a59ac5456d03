"""The classifier is as good as stated, its training continues exactly, files are checked."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.harness.errors import InputError
from benchmarks.quality.frechet import STATISTICS, gather_statistics, load_statistics, to_unit
from benchmarks.reference.classifier import (
    CLASSIFIER,
    CONFIG,
    WEIGHTS,
    FashionCNN,
    load_classifier,
    predict_classes,
)
from benchmarks.reference.data import DEFAULT_FOLDER, FOLDER_VARIABLE, Split, load_split
from benchmarks.reference.train_classifier import MAX_SHIFT, augment, export, train
from benchmarks.reference.training import TrainingOptions

needs_fashion = pytest.mark.skipif(
    not Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).is_dir(),
    reason="needs the Debian package dataset-fashion-mnist",
)
build_toy = partial(FashionCNN, channels=(4, 4, 4), num_features=8)


@pytest.fixture(autouse=True)
def private_rng():
    """Training seeds PyTorch's random numbers: keep that from the other tests."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine, threads that wait for each other are many times slower than one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def options(tmp_path):
    return TrainingOptions(tmp_path / "run", steps=4, batch_size=4, checkpoint_every=2)


@pytest.fixture
def data():
    rng = torch.Generator().manual_seed(1)
    return Split(torch.rand(12, 1, 28, 28, generator=rng) * 2 - 1, torch.arange(12) % 10)


def assert_equal_states(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@needs_fashion
def test_shipped_classifier_has_the_stated_accuracy():
    test = load_split("test")
    is_right = predict_classes(load_classifier(), test.images) == test.labels
    config = json.loads((CLASSIFIER / CONFIG).read_text())
    # Two images of 10,000 may fall to the other side where a machine rounds differently.
    assert is_right.double().mean().item() == pytest.approx(config["test_accuracy"], abs=2e-4)
    assert config["test_accuracy"] >= 0.925


@pytest.mark.slow
@needs_fashion
def test_shipped_statistics_are_of_the_training_set():
    net = load_classifier()
    found, shipped = (
        gather_statistics(net, to_unit(load_split("train").images)),
        load_statistics(net),
    )
    assert shipped["real_features_num_samples"] == 60_000
    torch.testing.assert_close(shipped, found, rtol=1e-5, atol=0)


def test_shipped_classifier_is_small_and_as_it_says():
    net = load_classifier()
    assert sum(file.stat().st_size for file in CLASSIFIER.iterdir()) <= 400_000
    assert not net.training
    maps, features = (
        net.maps(torch.zeros(2, 1, 28, 28)),
        net.features(torch.zeros(2, 1, 28, 28)),
    )
    assert [tuple(each.shape[2:]) for each in maps] == [(28, 28), (14, 14), (7, 7)]
    assert features.shape == (2, 64)


def test_predictions_do_not_depend_on_the_batch(data):
    net = load_classifier()
    whole, parts = (predict_classes(net, data.images, size) for size in (12, 5))
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_training_continues_bit_for_bit(data, options, stop_at, tmp_path):
    whole = train(data, options, build=build_toy)
    parted = replace(options, out=tmp_path / "parted")
    assert train(data, replace(parted, stop_at=stop_at), build=build_toy) is None
    torch.manual_seed(99)  # what the process drew in between must not matter
    assert_equal_states(train(data, parted, build=build_toy), whole)


def test_training_depends_on_the_seed(data, options, tmp_path):
    first = train(data, options, build=build_toy)
    second = replace(options, seed=1, out=tmp_path / "second")
    other = train(data, second, build=build_toy)
    with pytest.raises(AssertionError):
        assert_equal_states(first, other)


def test_training_rejects_the_checkpoint_of_another_run(data, options):
    train(data, replace(options, stop_at=2), build=build_toy)
    with pytest.raises(InputError, match="batch_size 4 there, 3 here"):
        train(data, replace(options, batch_size=3), build=build_toy)


def test_training_learns_what_is_easy(options):
    # The class is where the bright bar is: high or low, as images are mirrored.
    images = torch.full((64, 1, 28, 28), -1.0)
    labels = torch.arange(64) % 2
    images[labels == 0, :, 4:10], images[labels == 1, :, 18:24] = 1, 1
    split = Split(images, labels)
    build_small = partial(FashionCNN, channels=(8, 8, 8), num_features=16)
    net = train(split, replace(options, steps=120, batch_size=16), build=build_small)
    assert (predict_classes(net, images) == labels).double().mean() >= 0.95


def test_augmentation_moves_and_mirrors_whole_images():
    images = torch.full((200, 1, 28, 28), -1.0)
    images[:, :, 10, 5] = 1
    _, _, rows, columns = (augment(images) == 1).nonzero().T
    shifts = set(range(-MAX_SHIFT, MAX_SHIFT + 1))
    assert len(rows) == 200
    assert set((rows - 10).tolist()) == shifts
    assert {min(column, 27 - column) - 5 for column in columns.tolist()} == shifts
    assert 60 < (columns > 13).sum() < 140


def test_exported_folder_is_what_was_measured(data, options):
    net = train(data, options, build=build_toy)
    folder = export(net, data, data, options)
    loaded = load_classifier(folder)
    assert_equal_states(loaded, net)
    config = json.loads((folder / CONFIG).read_text())
    is_right = predict_classes(loaded, data.images) == data.labels
    assert config["test_accuracy"] == round(is_right.double().mean().item(), 4)
    found = gather_statistics(loaded, to_unit(data.images))
    torch.testing.assert_close(load_statistics(loaded, folder), found)


def test_exported_configuration_has_the_form_of_the_shipped_one(data, options):
    folder = export(train(data, options, build=build_toy), data, data, options)
    written, shipped = (
        json.loads((each / CONFIG).read_text()) for each in (folder, CLASSIFIER)
    )
    assert written.keys() == shipped.keys()
    assert written["training"].keys() == shipped["training"].keys()


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(CLASSIFIER, tmp_path / "copy"))


def test_loading_names_what_is_missing(copy):
    (copy / STATISTICS).unlink()
    with pytest.raises(InputError, match=rf"{STATISTICS} cannot be read .*train_classifier"):
        load_statistics(load_classifier(copy), copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"no classifier in .*{WEIGHTS}.*train_classifier"):
        load_classifier(copy)


def test_loading_rejects_damaged_and_unfit_files(copy):
    with pytest.raises(InputError, match=r"does not fit.*\[8\].*found.*\[64\]"):
        load_statistics(build_toy(), copy)
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | {"num_features": 32}))
    with pytest.raises(InputError, match=r"size mismatch for embed\.weight"):
        load_classifier(copy)
    shutil.copy(CLASSIFIER / CONFIG, copy)
    for name, load in (
        (STATISTICS, partial(load_statistics, load_classifier())),
        (WEIGHTS, load_classifier),
    ):
        (copy / name).write_bytes((copy / name).read_bytes()[:100])
        with pytest.raises(InputError, match="train_classifier"):
            load(folder=copy)
