"""How good the pictures on disk are: against a reference, and against real ones."""

import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness.store import Piece, Pieces
from benchmarks.quality.images import from_bytes
from benchmarks.quality.judge import AgainstReal, Judge, SameSeed


@dataclass(frozen=True)
class Quality:
    """How good the pictures of one row are; None for what was not judged.

    Attributes:
        images: Pictures, over all seed groups.
        psnr_db: Against the reference's pictures of the same seeds, mean over groups.
        ssim: The same.
        lpips: The same, by features.
        frechet: Distance from real pictures, per seed group.
        frechet_floors: That of as many real pictures as a group has, per draw.
        pooled_frechet: Distance of all pictures together.
        pooled_floors: That of as many real pictures, per draw.
        agreement: Share of pictures that a classifier takes for the class asked for.
        clip_score: Mean agreement with a caption, 0 to 100.
    """

    images: int = 0
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    frechet: tuple[float, ...] = ()
    frechet_floors: tuple[float, ...] = ()
    pooled_frechet: float | None = None
    pooled_floors: tuple[float, ...] = ()
    agreement: float | None = None
    clip_score: float | None = None


@dataclass(frozen=True)
class Panel:
    """Judges all rows alike.

    Attributes:
        judge: What applies to the pipeline's pictures.
        labels: Class asked for, of each picture of a group; the same for all groups.
        reference: Name of the row whose pictures the others are compared with.
        comparable: Rows that saw the same noise as the reference.
    """

    judge: Judge
    labels: Sequence[int]
    reference: str
    comparable: Collection[str]

    def judge_pieces(self, pieces: Pieces) -> dict[str, Quality]:
        """The quality of each row whose pictures are complete."""
        complete = {
            name: groups
            for name, groups in pieces.items()
            if all(piece.is_finished() for piece in groups)
        }
        reference = complete.get(self.reference)
        return {
            name: self.judge_one(groups, reference if name in self.comparable else None)
            for name, groups in tqdm(complete.items(), desc="judging", leave=False)
        }

    def judge_samples(self, samples: Mapping[str, torch.Tensor]) -> dict[str, Quality]:
        """The quality of a few pictures: against the reference's, since they are few."""
        reference = samples.get(self.reference)
        return {
            name: Quality(len(images), **asdict(self.judge.compare(images, reference)))
            for name, images in samples.items()
            if reference is not None and name in self.comparable
        }

    def judge_one(self, groups: Sequence[Piece], reference: Sequence[Piece] | None) -> Quality:
        """The quality of one row, group by group and altogether."""
        labels = list(self.labels)
        real = [self.judge.against_real(images, labels) for images in load_groups(groups)]
        pooled = (
            real[0]
            if len(groups) == 1
            else self.judge.against_real(
                torch.cat(list(load_groups(groups))), labels * len(groups)
            )
        )
        return Quality(
            images=len(labels) * len(groups),
            frechet_floors=self.judge.draw_floors(len(labels)),
            pooled_floors=self.judge.draw_floors(len(labels) * len(groups)),
            **self._compare(groups, reference),
            **describe_real(real, pooled),
        )

    def _compare(
        self, groups: Sequence[Piece], reference: Sequence[Piece] | None
    ) -> dict[str, Any]:
        if reference is None:
            return {}
        pairs = zip(load_groups(groups), load_groups(reference), strict=True)
        compared = [self.judge.compare(images, others) for images, others in pairs]
        names = SameSeed.__dataclass_fields__
        return {name: mean(getattr(each, name) for each in compared) for name in names}


def describe_real(real: Sequence[AgainstReal], pooled: AgainstReal) -> dict[str, Any]:
    """What `Quality` takes from the comparisons with real pictures."""
    return {
        "frechet": tuple(each.frechet for each in real if each.frechet is not None),
        "pooled_frechet": pooled.frechet,
        "agreement": pooled.agreement,
        "clip_score": pooled.clip_score,
    }


def load_groups(groups: Sequence[Piece]) -> Iterator[torch.Tensor]:
    """The pictures of each group in turn, float32 in [0, 1]."""
    return (from_bytes(piece.read()["images"]) for piece in groups)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if a value is."""
    known = list(values)
    if any(value is None for value in known):
        return None
    return statistics.fmean(value for value in known if value is not None)
