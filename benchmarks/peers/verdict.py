"""What the rows say: dqar_fx against each peer whose branch table it runs, and a bar."""

from collections.abc import Iterator, Sequence

from benchmarks.contenders.kinds import EAGER
from benchmarks.harness.timing import Spread
from benchmarks.peers.lineup import PAB, PACKED
from benchmarks.peers.rows import Row

BAR = 0.9
"""Share of PAB's best compiled time that dqar_fx may take with the same table."""
SAME_MACS = 0.01
"""Difference of MACs, as shares of the full run's, up to which two tables count as equal."""


def take_share(ours: Row, peer: Row) -> Spread:
    """The share of a peer's time that ours takes, through the unit of each process.

    Of the medians; with both ranges in our favour, and with both against us.
    """
    own, other = (
        (row.speed_median or 0, row.speed_min or 0, row.speed_max or 0) for row in (ours, peer)
    )
    return Spread(other[0] / own[0], other[1] / own[2], other[2] / own[1])


def format_verdict(rows: Sequence[Row]) -> list[str]:
    """A few lines for each table that a peer and dqar_fx have in common."""
    tables = dict.fromkeys(row.table for row in rows if row.table is not None)
    return [line for table in tables for line in describe_table(rows, table)]


def describe_table(rows: Sequence[Row], table: str) -> Iterator[str]:
    """What the rows say of one table."""
    members = [row for row in rows if row.table == table]
    own = [row for row in members if row.kind != "peer"]
    others = [row for row in members if row.kind == "peer"]
    ours, peer = find_fastest(own), find_fastest(others)
    if ours is None or peer is None:
        missing = "dqar_fx" if ours is None else table
        yield f"Same table as {table}: no compiled row of {missing} was timed."
        if table == PAB:
            yield f"- bar ({BAR:g} of its best compiled time): not measured."
        return
    share = take_share(ours, peer)
    yield (
        f"Same table as {table}: dqar_fx ({ours.mode}) takes {share:.2f} of its best compiled "
        f"time ({peer.mode})."
    )
    plain = find_fastest([row for row in own if row.mode not in PACKED])
    if ours.mode in PACKED and plain is not None:
        yield f"- Without packed weights ({plain.mode}): {take_share(plain, peer):.2f}."
    yield f"- {describe_graphs(ours)} here, {describe_graphs(peer)} there."
    own_macs, other_macs = ours.macs_ratio, peer.macs_ratio
    if own_macs is None or other_macs is None:
        yield "- MACs of both were not counted, so that the tables may differ."
    elif abs(own_macs - other_macs) > SAME_MACS:
        yield f"- The work differs: MACs {own_macs:.3f} here, {other_macs:.3f} there."
    eager = find_fastest(others, compiled=False)
    if eager is not None and (eager.speed_median or 0) > (peer.speed_median or 0):
        yield f"- It is faster in eager mode: {take_share(ours, eager):.2f} of that time."
    if table == PAB:
        yield judge_bar(own, others, ours, share)


def find_fastest(rows: Sequence[Row], *, compiled: bool = True) -> Row | None:
    """The fastest row of those that are compiled, or of those that are not."""
    working = [row for row in rows if row.error is None and row.note is None]
    timed = [
        row
        for row in working
        if row.speed_median is not None and (row.mode != EAGER) == compiled
    ]
    return max(timed, key=lambda row: row.speed_median or 0, default=None)


def describe_graphs(row: Row) -> str:
    """Graphs, breaks and recompiles, and the steps that these are for."""
    return (
        f"{row.graphs} graphs, {row.breaks} breaks and {row.recompiles} recompiles in "
        f"{row.steps} steps"
    )


def judge_bar(own: Sequence[Row], others: Sequence[Row], ours: Row, share: Spread) -> str:
    """The bar: the share of the time, and no compiled row of ours breaks or recompiles."""
    compiled = [row for row in own if row.mode != EAGER and row.error is None]
    breaks = sum(row.breaks or 0 for row in compiled)
    recompiles = sum(row.recompiles or 0 for row in compiled)
    is_met = share.median <= BAR and not breaks and not recompiles
    most = max((row.graphs or 0 for row in others), default=0)
    return (
        f"- bar (at most {BAR:g} of its best compiled time, 0 breaks, 0 recompiles): "
        f"{'met' if is_met else 'missed'} with {share.median:.2f}, {breaks} breaks and "
        f"{recompiles} recompiles in all compiled rows of ours; PAB compiles up to {most} "
        f"graphs for {ours.steps} steps."
    )
