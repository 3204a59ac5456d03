"""Other people's caches on a DiT: what attaches runs, and what does not says why.

Each contender has a copy of the model of its own, so that hooks cannot leak, and begins every
trajectory with fresh state. Settings are the defaults, those of the documentation, and a few
beside them, where the defaults are not meant for a model like this one.
"""
