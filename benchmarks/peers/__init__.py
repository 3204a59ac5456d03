"""Peers: everybody who caches on a DiT, against the compiled untransformed model.

Each contender has a process of its own, with an empty Inductor cache, in which its
trajectories take turns with the unit's: the untransformed model, compiled as one graph. What
a peer's hooks and Dynamo's counters keep cannot reach another row. Reads top to bottom from
`benchmarks.peers.job`; what runs is made in `benchmarks.contenders`.
"""
