"""The reference pipeline generates, its training continues exactly, its data is checked."""

import gzip
import json
import re
import struct
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTPipeline, FlowMatchEulerDiscreteScheduler

from benchmarks.harness.errors import InputError
from benchmarks.reference import (
    PIPELINE,
    SMALL,
    train_classifier,
    train_transformer,
    train_vae,
    training,
)
from benchmarks.reference.assemble import assemble
from benchmarks.reference.data import (
    FILE_NAME,
    FOLDER_VARIABLE,
    Latents,
    Split,
    load_latents,
    load_split,
    save_latents,
)
from benchmarks.reference.models import build_scheduler, build_transformer, build_vae
from benchmarks.reference.training import Recipe, TrainingOptions
from dqar_fx.solver.noise_levels import NoiseLevels
from tests.benchmarks.command_errors import refuse

NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
build_toy_vae = partial(build_vae, block_out_channels=(8, 8, 8), norm_num_groups=4)
build_toy_transformer = partial(
    build_transformer, num_layers=2, num_attention_heads=2, attention_head_dim=8
)


@pytest.fixture(autouse=True)
def private_rng():
    """Training seeds PyTorch's random numbers: keep that from the other tests."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def options(tmp_path):
    return TrainingOptions(tmp_path / "run", steps=6, batch_size=4, checkpoint_every=2)


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(12, 1, 28, 28, generator=rng) * 2 - 1
    return Split(images, torch.arange(12) % 10)


@pytest.fixture
def latents():
    rng = torch.Generator().manual_seed(2)
    return Latents(torch.randn(12, 8, 7, 7, generator=rng), torch.arange(12) % 10, 0.9)


TRAINERS = {
    "vae": (partial(train_vae.train, build=build_toy_vae), "images"),
    "transformer": (partial(train_transformer.train, build=build_toy_transformer), "latents"),
}


@pytest.fixture(params=TRAINERS)
def train(request):
    """One of the two trainers: options -> trained toy, or None if the session ended early."""
    trainer, data = TRAINERS[request.param]
    return partial(trainer, request.getfixturevalue(data))


def load_pipeline(folder):
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, labels, *, num_steps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    output = pipeline(labels, generator=rng, num_inference_steps=num_steps, output_type="pt")
    return output.images


def assert_equal_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing


def write_idx(path, values, *, shape):
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    content = header + bytes(values)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def folder(tmp_path):
    """Three images of 2x2 in the layout of Fashion-MNIST, one file gzipped and one plain."""
    values = [0, 255, 51, 204, *range(8)]
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", values, shape=(3, 2, 2))
    write_idx(tmp_path / "train-labels-idx1-ubyte", [9, 0, 4], shape=(3,))
    return tmp_path


@pytest.mark.parametrize(("folder", "blocks", "width"), [(PIPELINE, 12, 128), (SMALL, 6, 96)])
def test_pipeline_generates_images(folder, blocks, width):
    pipeline = load_pipeline(folder)
    assert len(pipeline.transformer.transformer_blocks) == blocks
    assert pipeline.transformer.inner_dim == width
    images = generate(pipeline, pipeline.get_label_ids(["Trouser", "Bag"]), num_steps=4)
    assert images.shape == (2, 1, 28, 28)
    assert images.isfinite().all()
    assert 0 <= images.min() < images.max() <= 1


def test_pipeline_is_deterministic_and_follows_labels():
    pipeline = load_pipeline(PIPELINE)
    first, again = (generate(pipeline, [1, 8], num_steps=2) for _ in range(2))
    other = generate(pipeline, [9, 8], num_steps=2)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_training_continues_bit_for_bit(train, options, stop_at, tmp_path):
    whole = train(options)
    parted = replace(options, out=tmp_path / "parted")
    assert train(replace(parted, stop_at=stop_at)) is None
    torch.manual_seed(99)  # what the process drew in between must not matter
    assert_equal_weights(train(parted), whole)


def test_training_killed_between_checkpoints_continues_bit_for_bit(
    train, options, tmp_path, monkeypatch
):
    whole = train(options)
    parted = replace(options, out=tmp_path / "parted")
    take_step = training.take_step

    def fail_at_step_3(state, *args):
        if state.step == 3:
            raise KeyboardInterrupt
        return take_step(state, *args)

    monkeypatch.setattr(training, "take_step", fail_at_step_3)
    with pytest.raises(KeyboardInterrupt):
        train(parted)
    monkeypatch.undo()
    assert_equal_weights(train(parted), whole)


def test_training_of_a_complete_run_only_exports_again(train, options):
    assert_equal_weights(train(options), train(options))


def test_training_changes_the_weights_and_depends_on_the_seed(train, options, tmp_path):
    first = train(options)
    other = train(replace(options, seed=1, out=tmp_path / "other"))
    with pytest.raises(AssertionError):
        assert_equal_weights(first, other)


def test_training_rejects_the_checkpoint_of_another_run(train, options):
    train(replace(options, stop_at=2))
    with pytest.raises(InputError, match=r"batch_size 4 there, 3 here.*--out"):
        train(replace(options, batch_size=3))
    with pytest.raises(InputError, match="steps 6 there, 8 here"):
        train(replace(options, steps=8))
    assert train(replace(options, steps=8, resume=False, stop_at=2)) is None


def test_training_rejects_a_damaged_checkpoint(train, options):
    train(replace(options, stop_at=2))
    (checkpoint,) = options.out.glob("*.checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot be read.*--no-resume"):
        train(options)


def test_learning_rate_warms_up_and_falls_to_the_floor():
    recipe = Recipe("any", peak=2.0, warmup_steps=10, floor=0.02)
    assert recipe.learning_rate(0, 1000) == pytest.approx(0.2)
    assert recipe.learning_rate(9, 1000) == pytest.approx(2.0, rel=1e-3)
    assert recipe.learning_rate(500, 1000) == pytest.approx(2.0 * (0.02 + 0.98 / 2))
    assert recipe.learning_rate(1000, 1000) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("trainer", "sizes"),
    [
        (train_vae, (5000, 32)),
        (train_transformer, (2664, 128)),
        (train_classifier, (5600, 128)),
    ],
)
def test_trainers_have_their_recipe_and_refuse_what_is_missing(
    trainer, sizes, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    given = ["--out", str(tmp_path), "--threads", str(torch.get_num_threads())]
    options = trainer.Options.read([*given, "--no-resume", "--stop-at", "7"])
    assert (options.steps, options.batch_size) == sizes
    assert (options.last_step, options.resume, options.seed) == (7, False, 0)
    code, error = refuse(trainer.main, given, capsys)
    assert code == 2
    assert re.match("error: no (file|latents)", error)


def test_timesteps_are_stratified():
    numbers = train_transformer.draw_uniform(10)
    assert sorted((numbers * 10).long().tolist()) == list(range(10))


def test_the_velocity_of_flow_matching_has_no_loss(latents):
    class Right(torch.nn.Module):
        """Knows the data: what is left of a sample is noise."""

        config = build_toy_transformer().config

        def forward(self, noisy, timestep, class_labels):
            share = timestep.view(-1, 1, 1, 1) / 1000
            noise = (noisy - (1 - share) * data) / share
            return SimpleNamespace(sample=noise - data)

    index = torch.arange(4)
    data = latents.draw(index)
    loss = train_transformer.compute_flow_loss(Right(), data, latents.labels[index], 1000)
    assert loss < 1e-6


@NUMPY
def test_a_model_of_flow_matching_is_trained_and_assembled(options, images):
    train_vae.train(images, options, build=build_toy_vae)
    encoded = load_latents(options.out / FILE_NAME, num_channels=4, size=7)
    train = partial(train_transformer.train, encoded, build=build_toy_transformer)
    train(options, prediction="flow")
    with pytest.raises(InputError, match="is_flow"):
        train(options)
    pipeline = load_pipeline(assemble(options.out, prediction="flow"))
    assert NoiseLevels.of(pipeline.scheduler).is_flow
    assert generate(pipeline, [7], num_steps=2).shape == (1, 1, 28, 28)


@NUMPY
def test_steps_of_the_flow_scheduler_are_those_of_euler():
    ours, euler = build_scheduler("flow"), FlowMatchEulerDiscreteScheduler()
    rng = torch.Generator().manual_seed(0)
    one = other = torch.randn(1, 4, 7, 7, generator=rng)
    ours.set_timesteps(5)
    euler.set_timesteps(sigmas=ours.sigmas[:-1].tolist())
    for mine, theirs in zip(ours.timesteps, euler.timesteps, strict=True):
        velocity = torch.randn(one.shape, generator=rng)
        one = ours.step(velocity, mine, one).prev_sample
        other = euler.step(velocity, theirs, other).prev_sample
    assert torch.allclose(one, other, atol=1e-5)


def test_trained_parts_assemble_to_a_pipeline(options, images):
    train_vae.train(images, options, build=build_toy_vae)
    encoded = load_latents(options.out / FILE_NAME, num_channels=4, size=7)
    train_transformer.train(encoded, options, build=build_toy_transformer)
    pipeline = load_pipeline(assemble(options.out))
    sneaker = pipeline.get_label_ids(["Sneaker"])
    assert sneaker == [7]
    assert generate(pipeline, sneaker, num_steps=2).shape == (1, 1, 28, 28)
    assert pipeline.vae.config.scaling_factor == encoded.scaling_factor


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json"])
def test_assembled_configuration_is_the_shipped_one(options, images, latents, name):
    train_vae.train(images, options, build=build_toy_vae)
    train_transformer.train(latents, options, build=build_toy_transformer)
    folders = (assemble(options.out), PIPELINE)
    written, shipped = (json.loads((folder / name).read_text()) for folder in folders)
    version = "_diffusers_version"  # the only entry that may differ
    assert {**written, version: None} == {**shipped, version: None}


def test_assemble_names_the_missing_part(tmp_path):
    with pytest.raises(InputError, match=r"no trained vae in .*train_vae --out"):
        assemble(tmp_path)


def test_latents_survive_the_file(tmp_path, latents):
    save_latents(tmp_path / FILE_NAME, latents)
    found = load_latents(tmp_path / FILE_NAME, num_channels=4, size=7)
    assert torch.equal(found.moments, latents.moments)
    assert torch.equal(found.labels, latents.labels)
    assert found.scaling_factor == latents.scaling_factor
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_latents_rejects_missing_damaged_and_unfit_files(tmp_path, latents):
    path = tmp_path / FILE_NAME
    load = partial(load_latents, path, num_channels=4)
    with pytest.raises(InputError, match=r"no latents at .*train_vae"):
        load(size=7)
    save_latents(path, latents)
    with pytest.raises(InputError, match=r"\(12, 8, 8, 8\).*found \(12, 8, 7, 7\).*train_vae"):
        load(size=8)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"is not a file of latents.*train_vae"):
        load(size=7)


def test_data_reads_gzipped_and_plain_files(folder):
    split = load_split("train", folder)
    assert split.images.shape == (3, 1, 2, 2)
    torch.testing.assert_close(split.images[0].flatten(), torch.tensor([-1, 1, -0.6, 0.6]))
    assert split.labels.tolist() == [9, 0, 4]


def test_data_folder_comes_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert len(load_split("train").images) == 3


def test_data_missing_names_file_folder_and_remedy(tmp_path):
    with pytest.raises(InputError) as error:
        load_split("test", tmp_path / "none")
    for part in ("t10k-images-idx3-ubyte", str(tmp_path / "none"), "dataset-fashion-mnist"):
        assert part in str(error.value)


@pytest.mark.parametrize("num_bytes", [0, 8, -1])
def test_data_truncated_gzip_is_rejected(folder, num_bytes):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz"):
        load_split("train", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x01\0\0\0\x03\x09\0", r"promises 3 values .* found 2"),
        (b"\0\0\x08\x01\0\0", "is not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x03\x09\0\x04", "is not an idx file"),
        (b"\0\0\x08\x01\0\0\0\x02\x09\0", "3 images but .* 2 labels"),
    ],
    ids=["short", "header", "type", "count"],
)
def test_data_damaged_labels_are_rejected(folder, content, message):
    (folder / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_split("train", folder)
