"""What a run has finished, on disk: one file per piece of work, of one run only.

A file holds tensors, notes (JSON), and the identity of the work: all options and settings
that its contents follow from. A rerun takes what is there if the identity is the same, and
refuses it if not.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from benchmarks.reference.errors import InputError

Identity = Mapping[str, Any]


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
