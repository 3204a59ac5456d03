"""What calibration looks at: how a site's output changes, its entropy, and what reuse does.

Each site's output is compared with those of earlier steps. For some cells (step, site, age)
the step is computed once more with that one reuse, to see what it does to the denoiser's
output.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dqar_fx.passes import NoMatch, expose_attention, keep_keys_values
from dqar_fx.passes.support.runner import run_pass

from .observe import SiteObserver, SiteValues
from .site_reuse import SiteReuse, prepare_sites, relative_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dqar_fx.capture.capture import Capture
    from dqar_fx.passes.support.module_sites import Match

    from .attention_record import AttentionRecord
    from .observe import ObservedStep
    from .site_reuse import TensorSequence


class AttentionProbe(SiteObserver):
    """Measures the attention of one input signature of a denoiser.

    Args:
        captured: The model as a graph.
        sites: As for ``transform``.
        record: What the measurements are added to; it also chooses the reuses to try.
        compare_kv: Whether to try kept keys and values, too.
    """

    def __init__(
        self,
        captured: Capture,
        sites: str | Sequence[str],
        record: AttentionRecord,
        *,
        compare_kv: bool,
    ) -> None:
        super().__init__(captured, sites, record.num_steps, record.max_age)
        self._keys_values = [
            match_keys_values(match) if compare_kv else None for match in self._matches
        ]
        exposed = [
            match if other is None else replace(match, kept=(*match.kept, *other.kept))
            for match, other in zip(self._matches, self._keys_values, strict=True)
        ]
        run_pass(self._graph, partial(expose_attention, matches=exposed))
        self._reuse_kv: SiteReuse | None = None
        if any(self._keys_values):
            gm, matches = prepare_sites(captured.gm, sites)
            self._reuse_kv = SiteReuse.of(gm, [match_keys_values(m) or m for m in matches])
        self._record = record
        record.sites = self.table.sites

    def look(self, step: ObservedStep) -> list[SiteValues]:
        """Measure changes and entropies, and try some reuses."""
        now, entropy = self._split(step.exposed)
        number = step.position.step
        change = [
            {
                number - before: relative_error(own.outputs, old[site].outputs)
                for before, old in step.past.items()
            }
            for site, own in enumerate(now)
        ]
        self._record.add_step(number, step.position.stream, entropy, change)
        for site, age in self._record.choose_cells(len(now), sorted(change[0])):
            old = step.past[number - age][site]
            errors = self.reuse_error(step, site, old), *self._kv_errors(step, site, old, now)
            self._record.add_cell(number, site, age, errors)
        return now

    def _split(self, exposed: TensorSequence) -> tuple[list[SiteValues], list[torch.Tensor]]:
        """Split the outputs that were added into values and entropy, per site."""
        rest = iter(exposed)
        values: list[SiteValues] = []
        entropy: list[torch.Tensor] = []
        for match, other in zip(self._matches, self._keys_values, strict=True):
            outputs = [next(rest) for _ in match.outputs]
            keys_values = [next(rest) for _ in (other.kept if other else ())]
            values.append(SiteValues(outputs, keys_values))
            entropy.append(next(rest))
        return values, entropy

    def _kv_errors(
        self, step: ObservedStep, site: int, old: SiteValues, now: Sequence[SiteValues]
    ) -> tuple[float, float]:
        """Errors of the denoiser's and the site's output with kept keys and values; or NaN."""
        if self._reuse_kv is None or not old.keys_values:
            return float("nan"), float("nan")
        outputs, of_site = self._reuse_kv.run(step.leaves, site, old.keys_values)
        return (
            relative_error(step.outputs, outputs).item(),
            relative_error(now[site].outputs, of_site).item(),
        )


def match_keys_values(match: Match) -> Match | None:
    """The match with its keys and values kept; None where it computes none."""
    try:
        return keep_keys_values(match)
    except NoMatch:
        return None
