"""Assemble the trained parts into a diffusers pipeline folder.

Reads ``vae/`` and ``transformer/`` in ``--out``, writes ``pipeline/`` there, which
``DiTPipeline.from_pretrained`` loads.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from benchmarks.harness.errors import InputError
from benchmarks.harness.options import Command, one_of, run_command
from benchmarks.harness.pipelines import DTYPES
from benchmarks.reference import OUT
from benchmarks.reference.data import LABELS
from benchmarks.reference.models import PREDICTIONS, build_scheduler


@dataclass(frozen=True)
class Options(Command):
    """Options of this command."""

    COMMAND = "benchmarks.reference.assemble"

    out: Path = OUT
    """Folder of the run."""
    dtype: Annotated[str, one_of(tuple(DTYPES))] = "float16"
    """Type of the stored weights."""
    prediction: Annotated[str, one_of(tuple(PREDICTIONS))] = "epsilon"
    """What the transformer learnt to give."""


def assemble(
    out: Path, dtype: torch.dtype = torch.float16, prediction: str = "epsilon"
) -> Path:
    """Assemble the pipeline of a finished run.

    Args:
        out: The folder of the run.
        dtype: The type to store the weights in.
        prediction: What the transformer learnt to give, one of `PREDICTIONS`.

    Returns:
        The pipeline folder.

    Raises:
        InputError: If a part is missing or the parts do not fit together.
    """
    vae = AutoencoderKL.from_pretrained(find_part(out, "vae"), torch_dtype=dtype)
    transformer = DiTTransformer2DModel.from_pretrained(
        find_part(out, "transformer"), torch_dtype=dtype
    )
    if vae.config.latent_channels != transformer.config.in_channels:
        raise InputError(
            f"the parts in {out} do not fit: the VAE has {vae.config.latent_channels} latent "
            f"channels, the transformer takes {transformer.config.in_channels}. Train the "
            "transformer on the latents of this VAE."
        )
    pipeline = DiTPipeline(transformer, vae, build_scheduler(prediction))
    folder = out / "pipeline"
    pipeline.save_pretrained(folder)
    # DiTPipeline reads the names of the labels from its index, but does not write them there.
    names: dict[str, Any] = {"id2label": dict(enumerate(LABELS))}
    changes = {"model_index.json": names, "vae/config.json": {}, "transformer/config.json": {}}
    for name, added in changes.items():
        content = json.loads((folder / name).read_text()) | added
        # The folder of the run means nothing to whoever loads the pipeline.
        content.pop("_name_or_path", None)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def find_part(out: Path, name: str) -> Path:
    """Return the folder of a trained part."""
    if not (out / name / "config.json").is_file():
        raise InputError(
            f"no trained {name} in {out / name}. Run "
            f"python -m benchmarks.reference.train_{name} --out {out} to its end first."
        )
    return out / name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Assemble and tell where."""
    print(f"wrote {assemble(options.out, DTYPES[options.dtype], options.prediction)}")


if __name__ == "__main__":
    sys.exit(main())
