"""Quality against measured time: our fronts, peers, and simply fewer steps, in one run.

Reads top to bottom from `benchmarks.pareto.job`; what runs is made in `benchmarks.contenders`.
"""
