"""What a run has finished, on disk: one file per piece of work, of one run only.

A file holds tensors, notes (JSON), and the identity of the work: all options and settings
that its contents follow from. A rerun takes what is there if the identity is the same, and
refuses it if not.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from benchmarks.harness.errors import InputError

Identity = Mapping[str, Any]
NUM_VALUES = 64
"""Values of each parameter that its fingerprint reads."""


@dataclass(frozen=True)
class Piece:
    """A finished or unfinished piece of work.

    Attributes:
        path: Its file.
        identity: What its contents follow from.
    """

    path: Path
    identity: Identity

    def is_finished(self) -> bool:
        """Whether it is on disk.

        Raises:
            InputError: What is on disk is of another run, or damaged.
        """
        if not self.path.exists():
            return False
        found = json.loads(self._metadata().get("identity", "{}"))
        expected = json.loads(json.dumps(self.identity))  # tuples become lists, as on disk
        if found != expected:
            raise InputError(
                f"{self.path} is of another run: {describe_difference(found, expected)}. "
                "Give the same options, another --out, or delete it"
            )
        return True

    def write(self, tensors: dict[str, torch.Tensor], notes: object = None) -> None:
        """Write tensors and notes: whole, or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        metadata = {"identity": json.dumps(self.identity), "notes": json.dumps(notes)}
        save_file({k: t.contiguous() for k, t in tensors.items()}, partial, metadata)
        os.replace(partial, self.path)

    def read(self) -> dict[str, torch.Tensor]:
        """The tensors.

        Raises:
            InputError: They cannot be read.
        """
        with opened(self.path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def read_notes(self) -> Any:
        """The notes.

        Raises:
            InputError: They cannot be read.
        """
        return json.loads(self._metadata()["notes"])

    def _metadata(self) -> dict[str, str]:
        with opened(self.path) as file:
            return file.metadata() or {}


Pieces = Mapping[str, Sequence[Piece]]
"""Per row of a table, a piece for each seed group."""


def opened(path: Path) -> Any:
    """An open file.

    Raises:
        InputError: It is damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it") from None


def describe_difference(found: Identity, expected: Identity) -> str:
    """What differs, in words."""
    return ", ".join(
        f"{key} {shorten(found.get(key))} there, {shorten(expected.get(key))} here"
        for key in sorted({*found, *expected})
        if found.get(key) != expected.get(key)
    )


def shorten(value: object) -> str:
    """A value in at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def file_name(name: str) -> str:
    """A name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def take_fingerprint(*modules: nn.Module) -> str:
    """A short text that differs for other weights: of names, shapes and some values."""
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            values = parameter.detach().flatten()[:NUM_VALUES].double().cpu()
            digest.update(f"{name} {list(parameter.shape)}".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
