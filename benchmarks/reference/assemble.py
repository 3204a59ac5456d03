"""Assemble the trained parts into a diffusers pipeline folder.

Reads ``vae/`` and ``transformer/`` in ``--out``, writes ``pipeline/`` there, which
``DiTPipeline.from_pretrained`` loads.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from benchmarks.harness.errors import InputError
from benchmarks.reference.data import LABELS
from benchmarks.reference.errors import report_input_errors
from benchmarks.reference.models import build_scheduler
from benchmarks.reference.options import DEFAULT_OUT

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def assemble(out: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Assemble the pipeline of a finished run.

    Args:
        out: The folder of the run.
        dtype: The type to store the weights in.

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
    pipeline = DiTPipeline(transformer, vae, build_scheduler())
    folder = out / "pipeline"
    pipeline.save_pretrained(folder)
    # DiTPipeline reads the names of the labels from its index, but does not write them there.
    edit_json(folder / "model_index.json", add={"id2label": dict(enumerate(LABELS))})
    # The folder of the run means nothing to whoever loads the pipeline.
    for part in ("vae", "transformer"):
        edit_json(folder / part / "config.json", remove="_name_or_path")
    return folder


def edit_json(path: Path, *, add: Mapping[str, Any] | None = None, remove: str = "") -> None:
    """Add entries to a JSON object in a file and remove one, if it is there."""
    content = json.loads(path.read_text()) | dict(add or {})
    content.pop(remove, None)
    path.write_text(json.dumps(content, indent=2) + "\n")


def find_part(out: Path, name: str) -> Path:
    """Return the folder of a trained part."""
    if not (out / name / "config.json").is_file():
        raise InputError(
            f"no trained {name} in {out / name}. Run "
            f"python -m benchmarks.reference.train_{name} --out {out} to its end first."
        )
    return out / name


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=DEFAULT_OUT, help="folder of the run")
    add("--dtype", choices=DTYPES, default="float16", help="type of the stored weights")
    args = parser.parse_args(argv)
    with report_input_errors():
        folder = assemble(args.out, DTYPES[args.dtype])
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
