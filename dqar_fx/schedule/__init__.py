"""Rules that say what each site does at each step, and the branch table they resolve to.

Numpy only: nothing here knows a model, a graph or a tensor.
"""
