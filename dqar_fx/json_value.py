"""Dataclasses that are written as JSON and read back, checked against their annotations."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Self

import msgspec

from .errors import DqarError


@dataclass(frozen=True)
class JsonValue:
    """A dataclass of numbers, texts, containers of them, and others of its kind.

    Annotations are read when one is decoded, so that their names must be imported, not for
    types alone. Fields that equality ignores are no part of the JSON.
    """

    def to_json(self) -> str:
        """Write the value as JSON, for `from_json`."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return json.dumps(msgspec.to_builtins(content))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DqarError: It is something else.
        """
        try:
            return msgspec.convert(json.loads(text), cls)
        except (ValueError, msgspec.ValidationError) as error:
            name = re.sub(r"(?<!^)(?=[A-Z])", " ", cls.__name__).lower()
            raise DqarError(
                f"this is no {name} in JSON: {type(error).__name__}: {error}. Expected what "
                f"{cls.__name__}.to_json() gives"
            ) from error
