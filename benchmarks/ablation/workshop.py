"""Builds denoisers that share what can be shared: captures and compiled regions."""

from dataclasses import dataclass, field
from typing import Any

import dqar_fx
from benchmarks.harness.contenders import Contender, Workshop


@dataclass(frozen=True)
class SharingWorkshop(Workshop):
    """Builds one denoiser per kind of cache, and its twins for other schedules.

    Attributes:
        latest: The denoiser that was built last, by what it keeps and how.
    """

    latest: dict[tuple[str, str], dqar_fx.Denoiser] = field(default_factory=dict)

    def build(self, contender: Contender) -> Any:
        """A module to be called in the original's place."""
        if contender.schedule is None:
            return super().build(contender)
        key = contender.keep, contender.cache
        known = self.latest.get(key)
        if known is None:
            self.latest[key] = super().build(contender)
        else:
            self.latest[key] = known.with_schedule(contender.schedule)
        return self.latest[key]
