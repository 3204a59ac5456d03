"""BudCache's own search: which steps of a run compute, at a fixed number of them.

At the other steps what all blocks of the model added at the last computed step is added again.
The steps are sought by simulated annealing, then by hill climbing, with the numbers of the
published code; a low limit of trials shortens both. Its loss is the mean squared error of the
latents of one picture to those of the run that computes all steps; here it is that of four
decoded pictures in [-1, 1]. The timesteps of a second stage are not searched.

Source: Lei et al. 2026, arXiv 2606.13496; Westlake-AGI-Lab/BudCache,
scripts/stage1_search_flux.py and configs/search_flux.yaml.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import dqar_fx
from benchmarks import solvers
from benchmarks.contenders import kinds
from benchmarks.contenders.bench import Bench
from benchmarks.contenders.contenders import Contender, Entrant
from benchmarks.contenders.recipes import Transformed
from benchmarks.harness.store import take_fingerprint
from benchmarks.pareto.options import Options
from dqar_fx import Schedule, prior_art
from dqar_fx.optimiser.trials import PipelineJob, ScheduleTrials

Steps = tuple[int, ...]
"""The steps that compute, in order."""
ANNEALING, CLIMBS = 200, 20
"""Moves of the annealing, and the most steps of the climb after it."""
HOTTEST, COLDEST = 0.05, 1e-5
NEAR = 3
"""Distance of a move to a near step."""
NEAR_MOVES, SINGLE_MOVES = 0.7, 0.9
"""Shares of the moves of annealing that go to a near step, and that move one step alone."""
JUMPS = 2
"""Moves to any step that hill climbing tries for each computed step."""
PICTURES = 4
SITES = "span"
SECOND_SOLVER = ("DPM-Solver++ 2M", "leading", 20)
"""Name, spacing and steps of what is cached beside the pipeline's own scheduler."""


class LimitReachedError(Exception):
    """As many trials were made as may be."""


@dataclass
class Search:
    """One search.

    Attributes:
        measure: The loss of some computed steps.
        num_steps: Steps of the run.
        budget: How many of them compute.
        limit: Different sets of steps that may be tried.
        chance: What draws moves.
        tried: The loss of each that was tried.
    """

    measure: Callable[[Steps], float]
    num_steps: int
    budget: int
    limit: int
    chance: random.Random
    tried: dict[Steps, float] = field(default_factory=dict)

    @property
    def fixed(self) -> int:
        """First steps that always compute."""
        return max(1, self.budget // 4)

    def run(self) -> Steps:
        """Anneal, then climb: the best steps that were tried."""
        with suppress(LimitReachedError):
            self.climb(self.anneal(self.draw()))
        return min(self.tried, key=self.tried.__getitem__)

    def loss(self, steps: Steps) -> float:
        """The loss of some steps, each measured once.

        Raises:
            LimitReachedError: They would be one more than may be tried.
        """
        if steps not in self.tried:
            if len(self.tried) >= self.limit:
                raise LimitReachedError
            self.tried[steps] = self.measure(steps)
        return self.tried[steps]

    def draw(self) -> Steps:
        """The first steps, and random others."""
        others = range(self.fixed, self.num_steps)
        drawn = self.chance.sample(others, self.budget - self.fixed)
        return (*range(self.fixed), *sorted(drawn))

    def anneal(self, steps: Steps) -> Steps:
        """Accept what is better, and at first often what is worse; the last that was."""
        moves = min(ANNEALING, self.limit // 2)
        for number in range(moves):
            heat = HOTTEST * (COLDEST / HOTTEST) ** (number / moves)
            other = self.move(steps)
            worse = self.loss(other) - self.loss(steps)
            if worse < 0 or self.chance.random() < math.exp(-worse / heat):
                steps = other
        return steps

    def climb(self, steps: Steps) -> Steps:
        """Go to the best neighbour as long as one is better."""
        for _ in range(CLIMBS):
            best = min(self.neighbours(steps), key=self.loss, default=steps)
            if self.loss(best) >= self.loss(steps):
                break
            steps = best
        return steps

    def move(self, steps: Steps) -> Steps:
        """Let one computed step be another, mostly a near one, or two of them any others."""
        movable, free = self.movable(steps), self.free(steps)
        if not movable or not free:
            return steps
        is_single = self.chance.random() < SINGLE_MOVES
        if not is_single and min(len(movable), len(free)) > 1:
            sources, targets = (self.chance.sample(each, 2) for each in (movable, free))
            return tuple(sorted({*steps} - {*sources} | {*targets}))
        source = self.chance.choice(movable)
        near = [step for step in free if abs(step - source) <= NEAR]
        is_near = bool(near) and self.chance.random() < NEAR_MOVES
        return exchange(steps, source, self.chance.choice(near if is_near else free))

    def neighbours(self, steps: Steps) -> list[Steps]:
        """All that have one computed step at a near place, and some that have it at any."""
        free, found = self.free(steps), []
        for source in self.movable(steps):
            targets = [step for step in free if abs(step - source) <= NEAR]
            any_steps = range(self.fixed, self.num_steps)
            targets += [self.chance.choice(any_steps) for _ in range(JUMPS)]
            found += [exchange(steps, source, each) for each in targets if each not in steps]
        return list(dict.fromkeys(found))

    def movable(self, steps: Steps) -> list[int]:
        """Computed steps after the first ones."""
        return [step for step in steps if step >= self.fixed]

    def free(self, steps: Steps) -> list[int]:
        """Steps that do not compute."""
        return [step for step in range(self.fixed, self.num_steps) if step not in steps]


def exchange(steps: Steps, source: int, target: int) -> Steps:
    """Steps with one of them in the place of another."""
    return tuple(sorted({*steps} - {source} | {target}))


@dataclass(frozen=True)
class Searched:
    """The steps that a search finds on a bench, and what they make of its model.

    Attributes:
        solver: Name and spacing of the solver; None for the pipeline's own scheduler.
        steps: Of the run.
        budget: How many of them compute.
        limit: Different sets of steps that may be tried.
        file: Where the quality of each is kept, so that an interrupted search goes on.
    """

    solver: tuple[str, str] | None
    steps: int
    budget: int
    limit: int
    file: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What the pictures follow from."""
        own = {"search": "budcache", "solver": self.solver, "budget": self.budget}
        return {**own, "limit": self.limit, "searched_on": PICTURES}

    def build(self, bench: Bench, mode: str) -> Entrant:
        """Make it: search where that was not done yet."""
        scheduler = self.solver and solvers.make_solver(bench.pipe, *self.solver)
        key = ("budcache", self)
        if key not in bench.made:
            with bench.entered(Entrant(bench.original, scheduler=scheduler)):
                bench.made[key] = self.search(bench)
        steps, trials = bench.made[key]
        recipe = Transformed(lambda _: self.schedule(steps), self.identity, SITES)
        return replace(recipe.build(bench, mode), scheduler=scheduler, trials=trials)

    def search(self, bench: Bench) -> tuple[Steps, int]:
        """The best computed steps, and how many others were tried."""
        first = self.schedule(tuple(range(self.budget)))
        denoiser = dqar_fx.transform(bench.original, first, sites=SITES)
        classes = bench.protocol.classes
        labels = tuple(classes[number % len(classes)] for number in range(PICTURES))
        call = {"guidance_scale": bench.protocol.guidance}
        job = PipelineJob(bench.pipe, labels, solvers.FIT_SEED, self.steps, PICTURES, call)
        weights = take_fingerprint(bench.original, bench.pipe.vae)
        salt = f"{weights} {bench.protocol.guidance} {self.steps} {self.solver} "
        trials = ScheduleTrials(job, denoiser, salt, self.file)
        trials.capture()

        def measure(steps: Steps) -> float:
            found_db = trials.psnr(self.schedule(steps), denoiser.table.sites)
            return 4.0 * 10.0 ** (-found_db / 10)  # pictures in [0, 1] are half as far apart

        chance = random.Random(self.budget)
        search = Search(measure, self.steps, self.budget, self.limit, chance)
        return search.run(), len(search.tried)

    def schedule(self, steps: Steps) -> Schedule:
        """Computed steps as a schedule."""
        reused = [step for step in range(self.steps) if step not in steps]
        return prior_art.read_budcache(reused, self.steps, sites=SITES)


def list_searched(options: Options, mode: str) -> Iterator[Contender]:
    """A run of each solver at each budget below its steps."""
    name, spacing, steps = SECOND_SOLVER
    runs = [(None, "own scheduler", options.steps), ((name, spacing), name, steps)]
    make = partial(
        Searched, limit=options.budcache_trials, file=options.out / "budcache.jsonl"
    )
    for solver, shown, num_steps in runs:
        for budget in options.budcache:
            if budget < num_steps:
                recipe = make(solver, num_steps, budget)
                setting = f"BudCache, {shown}, {budget} of {num_steps} steps"
                yield Contender(setting, kinds.BUDCACHE, num_steps, recipe, mode)
