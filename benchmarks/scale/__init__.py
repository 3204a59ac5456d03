"""How the time of a transformation grows with layers and steps; nothing is compiled or run.

::

    python -m benchmarks.scale            # 14 to 112 layers, 50 to 1,000 steps
    python -m benchmarks.scale --quick    # does it run at all?

Narrow models on the meta device: what grows is the graph. Reads top to bottom from
`benchmarks.scale.job`.
"""
