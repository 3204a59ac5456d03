"""Peers: everybody who caches on a DiT, against the compiled untransformed model.

::

    python -m benchmarks.peers                        # reference pipeline: all rows
    python -m benchmarks.peers --geometry DiT-XL/2    # another size, random weights
    python -m benchmarks.peers --quick                # does it run at all?

Each contender has a process of its own, with an empty Inductor cache, in which its
trajectories take turns with the unit's: the untransformed model, compiled as one graph. What
a rival's hooks and Dynamo's counters keep cannot reach another row. Reads top to bottom from
`benchmarks.peers.job`; bench, recipes and records are those of `benchmarks.pareto`.
"""
