"""Everybody who caches on a DiT, made and run alike for `pareto` and `peers`.

======================  ==================================================================
``contenders, kinds``   what a contender is, its family, and the ways to run
``recipes``             the untransformed model, and what dqar_fx makes of it
``hooks, cache_dit``    the caches of diffusers and of cache-dit, attached to a DiT
``settings``            which of their settings take part, and their decisions as schedules
``bench``, ``race``     where contenders run, and how they take turns
``records``             what is known of each, on disk after each trajectory
``rows``, ``report``    what was measured, and the page that says so
======================  ==================================================================
"""
