"""The race: everybody warms up, then all run in turn, often with the base before them.

Speed is the time of the base's trajectory by that of a contender that runs soon after it, in
the same process. Each repeat has other pictures, the same for all, and another order.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.contenders.bench import Bench
from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.records import WARMUP, Record
from benchmarks.harness.groups import Generate, fill_groups
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.rows import noted_failure
from benchmarks.harness.store import Pieces
from benchmarks.harness.timing import Compiled, rotate
from benchmarks.quality.images import to_bytes
from dqar_fx import Denoiser


@dataclass
class Race:
    """A race, as far as it got.

    Attributes:
        bench: Where it runs.
        base: Whose time is the unit.
        contenders: Who runs, the base among them.
        records: What is known of each, by name.
        entrants: What has been built in this process, by name.
    """

    bench: Bench
    base: Contender
    contenders: Sequence[Contender]
    records: dict[str, Record]
    entrants: dict[str, Entrant] = field(default_factory=dict)

    def run(self, repeats: int, pair: int) -> None:
        """Make all repeats that are not on disk.

        Args:
            repeats: How many.
            pair: How many contenders run after each trajectory of the base.
        """
        numbers = range(WARMUP + 1, WARMUP + 1 + repeats)
        missing = {
            number: [e for e in self.contenders if self.records[e.name].lacks(number)]
            for number in numbers
        }
        late = {each.name: each for listed in missing.values() for each in listed}
        if not late:
            return
        total = len(late) + sum(map(len, missing.values()))
        with quiet_compiler(), tqdm(total=total, desc="race", unit="run") as bar:
            for contender in {self.base.name: self.base, **late}.values():
                bar.set_description(f"warm-up: {contender.name}")
                self.attempt(self.warm_up, contender)
                bar.update(contender.name in late)
            for number, listed in missing.items():
                bar.set_description(f"repeat {number} of {repeats}")
                first = number * len(listed) // repeats  # another for each repeat
                self.repeat(number, rotate(listed, first), pair, bar)

    def repeat(self, number: int, listed: Sequence[Contender], pair: int, bar: Any) -> None:
        """One repeat of some contenders, the base before each few of them."""
        others = [each for each in listed if each.name != self.base.name]
        bar.update(len(listed) - len(others))
        # Without others, the base alone may lack this repeat.
        for start in range(0, max(len(others), bool(listed)), pair):
            base_s = self.time_base(number)
            if base_s is None:
                return
            for contender in others[start : start + pair]:
                self.attempt(self.time, contender, number, base_s)
                bar.update()

    def warm_up(self, contender: Contender) -> None:
        """Build a contender, and run a first trajectory in which all is compiled."""
        record, before = self.records[contender.name], Compiled.so_far()
        entrant = contender.recipe.build(self.bench, contender.mode)
        images, took_s = self.bench.run(entrant, contender.steps, self.bench.task(WARMUP))
        compiled = Compiled.so_far() - before
        found = self.examine(contender, entrant, images)
        self.entrants[contender.name] = entrant
        if record.facts:
            return  # of an earlier process: only to compile again
        record.images[WARMUP] = images
        is_built = compiled.graphs > 0 or isinstance(entrant.module, Denoiser)
        record.note(
            warmup_s=took_s,
            is_built=is_built,
            graphs=compiled.graphs,
            breaks=compiled.breaks,
            hooked=entrant.hooked,
            trials=entrant.trials,
            evaluations=self.bench.count_evaluations(entrant, contender.steps),
            machine=self.describe_machine(),
            **found,
        )

    def examine(
        self, contender: Contender, entrant: Entrant, images: torch.Tensor
    ) -> dict[str, Any]:
        """What else there is to know of a contender after its first trajectory."""
        del entrant, images
        if self.records[contender.name].facts:
            return {}
        return {"recompiles": 0, "macs": self.bench.count_macs(contender)}

    def time(self, contender: Contender, number: int, base_s: float) -> None:
        """One timed trajectory of a contender."""
        record, before = self.records[contender.name], Compiled.so_far()
        if record.error is not None:
            return
        entrant = self.entrants[contender.name]
        images, own_s = self.bench.run(entrant, contender.steps, self.bench.task(number))
        record.facts["recompiles"] += (Compiled.so_far() - before).graphs
        record.add(number, images, base_s, own_s)

    def time_base(self, number: int) -> float | None:
        """One timed trajectory of the base; the first of each repeat is its own row's."""
        record = self.records[self.base.name]
        if record.error is not None:
            return None
        task = self.bench.task(number)
        images, took_s = self.bench.run(self.entrants[self.base.name], self.base.steps, task)
        if number not in record.times:
            record.add(number, images, took_s, took_s)
        return took_s

    def fill(self, pieces: Pieces, group_size: int) -> dict[str, str]:
        """Generate pictures for a judge, in batches as large as those that are timed.

        Args:
            pieces: By name of a contender, where the pictures of each seed group belong,
                uint8; those that are on disk stay.
            group_size: Pictures in a group.

        Returns:
            What went wrong, by name.

        Raises:
            InputError: What is on disk is of another run.
        """
        bench, contenders = self.bench, {each.name: each for each in self.contenders}

        @contextmanager
        def opened(name: str) -> Iterator[Generate]:
            own = contenders[name]
            entrant = self.entrants.get(name) or own.recipe.build(bench, own.mode)

            def generate(group: int, bar: Any) -> torch.Tensor:
                done = []
                for task, count in bench.protocol.batches(group, group_size, bench.samples):
                    images, _ = bench.run(entrant, own.steps, task)
                    done.append(to_bytes(images[:count]))
                    bar.update(count)
                return torch.cat(done)

            yield generate

        return fill_groups(pieces, group_size, opened)

    def describe_machine(self) -> dict[str, Any]:
        """Where this is, and of which sources."""
        return asdict(describe_machine(self.bench.device))

    def attempt(self, action: Callable[..., None], contender: Contender, *args: Any) -> None:
        """Let a contender do something; a failure is noted, and the others go on."""

        def note(error: str) -> None:
            record = self.records[contender.name]
            record.note(error=error, machine=self.describe_machine())

        with noted_failure(contender.name, note):
            action(contender, *args)


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Without a page of warnings for each contender that recompiles: rows count the graphs."""
    logger = logging.getLogger("torch._dynamo")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
