"""Every claim about accelerators, proved or refuted by one command within a budget of time.

::

    job        the command: starts a process that measures, goes on after one that died,
               writes the report
    process    what measures: case after case, each part within its share of the time
    ledger     the rows on disk: whole lines, nothing twice
    parts/     the cases, by what they are about
    claims     what is claimed, and what rows make of it
    report     the page, as Markdown and HTML
    wheelhouse what a machine without a network must be given
"""
