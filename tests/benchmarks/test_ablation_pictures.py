"""Which pictures the ablation generates, and how they are kept on disk."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline

from benchmarks.ablation import generate, job
from benchmarks.ablation.generate import Studio
from benchmarks.ablation.protocol import REPORT_CLASSES, Protocol, choose_classes
from benchmarks.harness.contenders import Contender, Workshop
from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import Task
from benchmarks.harness.store import Piece
from benchmarks.quality.images import from_bytes, to_bytes
from tests.benchmarks.ablation_runs import note_groups
from tests.benchmarks.cut_pipeline import cut_pipeline


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """The reference pipeline, cut down to its first block."""
    return cut_pipeline(tmp_path_factory.mktemp("small") / "pipeline", num_layers=1)


@pytest.fixture
def generated(monkeypatch):
    """Which configurations and groups are generated, instead of generating them."""
    return note_groups(monkeypatch)


def test_protocol_seeds_of_groups_are_apart():
    protocol = Protocol({0: "cat", 1: "dog"}, (1, 0), 1.5)
    assert protocol.task(0, 0, 3) == Task((42, 43, 44), (1, 0, 1), ("dog", "cat", "dog"), 1.5)
    assert protocol.task(2, 5, 2).seeds == (200_047, 200_048)
    assert protocol.task(0, 1, 1).labels == (0,)


def test_choose_classes_takes_the_reports_where_they_are():
    imagenet = {label: str(label) for label in range(1000)}
    assert choose_classes(imagenet, None) == REPORT_CLASSES
    assert choose_classes({2: "a", 1: "b"}, None) == (1, 2)
    assert choose_classes(imagenet, [5, 3]) == (5, 3)


@pytest.fixture(scope="module")
def pipe(small_model):
    pipe = DiTPipeline.from_pretrained(small_model)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_generate_ddpm_noise_is_each_pictures_own(pipe):
    names = ("",) * 3
    together = Task((42, 43, 44), (0, 1, 2), names, 1.5).generate(pipe, 4)
    torch.manual_seed(1)
    again = Task((42, 43, 44), (0, 1, 2), names, 1.5).generate(pipe, 4)
    alone = Task((43,), (1,), names[:1], 1.5).generate(pipe, 4)
    assert torch.equal(together, again)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert "step" not in vars(pipe.scheduler)


def test_generate_group_last_batch_is_as_large_and_cut(pipe, monkeypatch):
    protocol = Protocol({0: "a", 1: "b"}, (0, 1), 1.5)
    sizes = []
    generate_task = Task.generate

    def note(self, pipe, steps):
        sizes.append(len(self.seeds))
        return generate_task(self, pipe, steps)

    monkeypatch.setattr(Task, "generate", note)
    workshop = Workshop(pipe.transformer, "eager")
    bar = type("Bar", (), {"update": lambda *_: None})()
    images = [
        Studio(pipe, workshop, protocol, 3, batch).generate_group(Contender("a", 2), 0, bar)
        for batch in (2, 3)
    ]
    assert sizes == [2, 2, 3]
    assert [tuple(each.shape) for each in images] == [(3, 1, 28, 28)] * 2
    assert (images[0].int() - images[1].int()).abs().max() <= 1


def test_to_bytes_rounds_and_refuses_what_is_no_picture():
    images = torch.tensor([0.0, 0.3, 1.0, 1.2]).reshape(1, 1, 2, 2)
    assert to_bytes(images).flatten().tolist() == [0, 76, 255, 255]
    assert from_bytes(to_bytes(images)).max() == 1.0
    with pytest.raises(ValueError, match="NaN"):
        to_bytes(torch.full((1, 1, 2, 2), math.nan))


# ---- what is on disk ---------------------------------------------------------------------


def test_piece_is_read_as_written(tmp_path):
    piece = Piece(tmp_path / "deep" / "a.safetensors", {"steps": 50, "classes": (1, 2)})
    assert not piece.is_finished()
    piece.write({"images": torch.arange(3)}, {"took_s": 1.5})
    assert piece.is_finished()
    assert piece.read()["images"].tolist() == [0, 1, 2]
    assert piece.read_notes() == {"took_s": 1.5}
    assert [path.name for path in piece.path.parent.iterdir()] == ["a.safetensors"]


def test_piece_of_another_run_is_refused(tmp_path):
    Piece(tmp_path / "a.safetensors", {"steps": 50, "old": 1}).write({})
    other = Piece(tmp_path / "a.safetensors", {"steps": 20, "model": "m" * 99})
    with pytest.raises(InputError) as error:
        other.is_finished()
    assert "model None there, mmm" in str(error.value)
    assert "old 1 there, None here, steps 50 there, 20 here" in str(error.value)


def test_piece_damaged_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read"):
        Piece(tmp_path / "a.safetensors", {}).is_finished()


def test_piece_interrupted_while_writing_is_not_there(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    piece = Piece(tmp_path / "a.safetensors", {})
    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        piece.write({"images": torch.zeros(2)})
    assert not piece.is_finished()


def test_generate_pictures_generates_what_is_missing(tmp_path, generated):
    contenders = [Contender("a", 2), Contender("b", 2)]
    entries = [job.Entry(each, generate) for each in contenders]  # facts are not looked at
    pieces = {
        name: [Piece(tmp_path / f"{name}-{group}.safetensors", {}) for group in range(2)]
        for name in "ab"
    }
    pieces["a"][1].write({"images": torch.zeros(1)})
    pipe = type("Pipe", (), {})()
    studio = Studio(pipe, Workshop(torch.nn.Identity(), "eager"), None, 1, 1)
    assert generate.generate_pictures(studio, entries, pieces) == {}
    assert generated == [("a", 0), ("b", 0), ("b", 1)]
    assert pipe.transformer is studio.workshop.original
