"""Options of the command, and of the process that measures for it."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

import torch

from benchmarks.accelerator.cases import Case, Part, key_of
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.scales import Scale, choose_scale
from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import Machine, choose_device, describe_machine
from benchmarks.harness.options import (
    Command,
    Flag,
    Patterns,
    above,
    convert_with,
    default_is,
    device_of,
)


@dataclass(frozen=True)
class SharedOptions(Command):
    """What the command hands on to the process that measures."""

    budget_s: Annotated[float, above(0)] = 540.0
    """Seconds that all of it may take."""
    device: Annotated[
        torch.device | None,
        convert_with(device_of, "DEVICE"),
        default_is("the fastest there is"),
    ] = None
    """Where it runs: cuda, mps, or cpu for a rehearsal."""
    only: Patterns = ("*",)
    """Parts or cases of such names: speed, "identity/*", ..."""
    small: Flag = False
    """Tiny models, also on an accelerator."""
    commit: Annotated[str | None, default_is("what git says")] = None
    """Of the sources, where they are no repository."""
    out: Path = Path("results/accelerator")
    """Folder to write to; what is there is not measured again."""

    def settle(self) -> Self:
        """The same on a device, if there is something to do."""
        settled = replace(super().settle(), device=self.device or choose_device())
        if not any(cases for _, cases in settled.list_wanted()):
            known = [part.name for part in PARTS]
            raise InputError(
                f"--only: nothing is called {' or '.join(self.only)}; the parts are {known}, "
                "and their cases are listed by --list"
            )
        return settled

    @property
    def place(self) -> torch.device:
        """The device, once settled."""
        assert self.device is not None, "options are settled when they are read"
        return self.device

    @property
    def scale(self) -> Scale:
        """How large everything is."""
        return choose_scale(self.place, self.small)

    def list_wanted(self) -> list[tuple[Part, list[Case]]]:
        """Parts, each with the cases that are wanted."""
        return [
            (part, [c for c in part.list_cases(self.scale) if self.wants(part, c)])
            for part in PARTS
        ]

    def wants(self, part: Part, case: Case) -> bool:
        """Whether a pattern fits a part or a case of it."""
        names = part.name, key_of(part.name, case.name)
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.only)

    def describe_machine(self) -> Machine:
        """The machine, with the commit that was given where git says none."""
        machine = describe_machine(self.place)
        return replace(machine, commit=machine.commit or self.commit)


@dataclass(frozen=True)
class Options(SharedOptions):
    """Options of this command."""

    list: Flag = False
    """Name all cases, measure nothing."""
    report: Flag = False
    """Write the report of what is there, measure nothing."""
