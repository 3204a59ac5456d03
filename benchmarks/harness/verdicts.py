"""Subjects that are tried by several checks: a verdict on each, and a row of them."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Self, TypeVar

from benchmarks.harness.errors import InputError
from benchmarks.harness.options import CpuOptions, Patterns, at_least
from benchmarks.harness.rows import SHARED, noted_failure
from benchmarks.harness.tables import NOTHING, Column

RIGHT, WRONG = "yes", "no"
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Verdict:
    """Whether a check holds, and a short word on it."""

    is_right: bool
    word: str


@dataclass
class TriedRow:
    """What one subject showed.

    Attributes:
        name: The subject.
        verdicts: By check, ``yes`` or ``no``, and a few words.
        seconds: What all checks took.
        error: What went wrong first, or None.
    """

    name: str
    verdicts: dict[str, str] = field(default_factory=dict, metadata=SHARED)
    seconds: float | None = None
    error: str | None = None

    @property
    def wrong(self) -> set[str]:
        """The checks that do not hold."""
        return {name for name, word in self.verdicts.items() if not word.startswith(RIGHT)}

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Writes an error down, if it is the first one, and goes on."""
        with noted_failure(f"{self.name}, {what}", self._note):
            yield

    def _note(self, error: str) -> None:
        self.error = self.error or error

    def try_all(
        self, checks: Mapping[str, Callable[[Subject], Verdict]], subject: Subject
    ) -> None:
        """Write the verdict of each check down; one that fails is wrong."""
        for name, check in checks.items():
            self.verdicts[name] = WRONG
            with self.noting(name):
                verdict = check(subject)
                self.verdicts[name] = f"{RIGHT if verdict.is_right else WRONG}: {verdict.word}"


def verdict_columns(checks: Iterable[str]) -> list[Column]:
    """A column for each check, and one for the seconds."""
    found = [
        Column(name.replace("_", " "), lambda row, name=name: row.verdicts.get(name, NOTHING))
        for name in checks
    ]
    return [*found, Column("s", "seconds", ".1f")]


@dataclass(frozen=True)
class TryOptions(CpuOptions):
    """Options of commands that try many small subjects."""

    threads: Annotated[int | None, at_least(1)] = 1
    """CPU threads; more of them take longer for models so small."""
    only: Patterns = ("*",)
    """Subjects of such names."""

    @classmethod
    @abstractmethod
    def known(cls) -> list[str]:
        """All subjects by name."""

    @property
    def names(self) -> list[str]:
        """The subjects to be tried."""
        return [n for n in self.known() if any(fnmatchcase(n, p) for p in self.only)]

    def settle(self) -> Self:
        """The same, if there is such a subject."""
        if not self.names:
            raise InputError(f"--only: nothing is called so; there are {self.known()}")
        return super().settle()
