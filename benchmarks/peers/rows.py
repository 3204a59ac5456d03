"""Rows: what was measured of one contender, as one line of JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.contenders import rows as shared
from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.kinds import EAGER, STOCK
from benchmarks.contenders.records import Record
from benchmarks.contenders.rows import describe_contender, describe_idle, pair_images
from benchmarks.quality.judge import Judge

SAME_ERROR = 1e-5
"""Relative error below which latents are the same but for how a compiler rounds."""


@dataclass(frozen=True)
class Row(shared.Row):
    """One contender, in a process of its own with the unit.

    Attributes:
        table: What is equal for those that follow one branch table.
        compile_s: Time of the first trajectory, with an empty Inductor cache, less that of a
            later one; None where nothing was captured or compiled.
        first_peak_bytes: The highest memory up to the end of the first trajectory above that
            before the contender was built: what compiles is in it.
        later_peak_bytes: The same in the second trajectory.
        cache_bytes: What the cache holds at most after a step; None for no cache.
        relative_error: Norm of the final latent's difference from the untransformed eager
            model's by the norm of that; None where there are pictures.
    """

    table: str | None = None
    compile_s: float | None = None
    first_peak_bytes: int | None = None
    later_peak_bytes: int | None = None
    cache_bytes: int | None = None
    relative_error: float | None = None


def make_rows(
    peers: Sequence[Contender],
    records: Mapping[str, Record],
    judge: Judge | None,
    run: Mapping[str, Any],
) -> list[Row]:
    """Rows of those that ran; the first is the base, and there is an eager one of it.

    Args:
        peers: Who takes part.
        records: What is on disk of each, by name.
        judge: Of pictures; None for latents.
        run: What all rows share.
    """
    base = with_macs(peers[0], peers, records)
    eager = next(e for e in peers if e.family == peers[0].family and e.mode == EAGER)
    reference, rows = records[eager.name], []
    for peer in peers:
        record = with_macs(peer, peers, records)
        if not record.facts:
            continue  # has not run yet
        found = describe_contender(peer, record, base, reference, judge)
        error = measure_error(record, reference) if judge is None else None
        if error is not None and error <= SAME_ERROR:
            found["note"] = describe_idle(peer, record.facts)
        for name in ("first_peak_bytes", "later_peak_bytes", "cache_bytes"):
            found[name] = record.facts.get(name)
        compile_s = find_compile_s(peer, record)
        own = {"table": peer.table, "compile_s": compile_s, "relative_error": error}
        rows.append(Row(**found, **own, run=run))
    return rows


def with_macs(
    peer: Contender, peers: Sequence[Contender], records: Mapping[str, Record]
) -> Record:
    """A record with its multiply-accumulates, which the eager mode of a setting has.

    Fewer steps of the untransformed model have as many less.
    """
    own = records[peer.name]
    setting = "untransformed" if peer.family.kind == "fewer" else peer.setting
    modes = (each for each in peers if each.setting == setting and each.mode in (EAGER, STOCK))
    counted = next(modes, None)
    macs = None if counted is None else records[counted.name].facts.get("macs")
    if not own.facts or macs is None or counted is None:
        return own
    return replace(own, facts={**own.facts, "macs": round(macs * peer.steps / counted.steps)})


def find_compile_s(peer: Contender, record: Record) -> float | None:
    """What building and compiling took; None if nothing was, or not from cold."""
    own_s = [own for _, own in record.times.values()]
    if not own_s or not record.facts.get("is_built") or peer.family.kind == "fewer":
        return None
    return max(0.0, float(record.facts["warmup_s"]) - statistics.median(own_s))


def measure_error(record: Record, reference: Record) -> float | None:
    """Relative error over all latents that both have; None without any, or after a failure."""
    pairs = None if record.error is not None else pair_images(record, reference)
    if pairs is None:
        return None
    own, other = (images.double() for images in pairs)
    return float((own - other).norm() / other.norm())
