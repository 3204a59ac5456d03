'''What the commands share, and how a command is written with it.

A command is one file, or a small folder whose ``job.py`` has what is below; the module's
docstring is the text and the examples of ``--help``::

    """One sentence of what is measured.

    Examples::

        python -m benchmarks.x --quick         # does it run at all?
    """

    QUICK = {"steps": 8}

    @dataclass(frozen=True)
    class Options(PipelineOptions):            # or GeometryOptions, or Command
        """Options of this command."""

        COMMAND = "benchmarks.x"
        QUICK = QUICK

        steps: Annotated[int, at_least(2)] = 50
        """Denoising steps."""
        only: Patterns = ("*",)
        """Rows of such names."""
        out: Path = Path("results/x")
        """Folder to write to."""
        quick: quick_flag(QUICK) = False

        def settle(self) -> Self:              # what depends on several options
            if ...:
                raise InputError("--only: what is wrong, and what to give instead")
            return replace(super().settle(), ...)

    COLUMNS = (Column("row", "name"), Column("step ms", "step_ms", ".2f"))

    def main(argv: Sequence[str] | None = None) -> int:
        """Run the command line; the exit code."""
        return run_command(Options, run, argv)

    def run(options: Options) -> int:
        """Measure, print and write; the exit code."""
        rows = [...]                           # dataclasses
        machine = describe_machine(options.device)
        print(format_table(COLUMNS, rows))
        print(wrap_notes(notes))
        write_rows(rows, options.out / "rows.jsonl", machine)
        return 1 if any(row.error for row in rows) else 0

======================  ==================================================================
``options``             ``Command``, ``CpuOptions``, kinds of values (``Count``, ``Counts``,
                        ``Patterns``, ``Folder``, ``at_least``, ``above``, ``one_of``,
                        ``several``), ``default_is``, ``quick_flag``, ``run_command``
``pipelines``           ``PipelineOptions``, ``load_pipeline``, ``Task``: the pictures
``geometry``            ``GeometryOptions``, ``Geometry``: a DiT with random weights
``rows``                ``write_rows``, ``append_rows``, ``read_rows``, ``to_values``,
                        ``SHARED``, ``noted_failure``
``store``, ``groups``   pieces of a long run on disk, which a later run takes up again
``tables``              ``Column``, ``format_table``, ``wrap_notes``, ``format_page``
``timing``              ``Spread``, ``take_ratios``, ``describe_speed``, ``rotate``,
                        ``time_steps``, ``run_lockstep``, ``timed_calls``, ``Compiled``
``contenders, trials``  who competes in the main job and in the ablation, and the contest
``apart``               ``run_apart``: a measuring process
``plots``, ``pictures``  the style of all figures, ``write_figure``; ``draw_grid``
``machine``, ``macs``   where something is measured; multiply-accumulates
``errors``              ``InputError``: ends a command with its text and code 2
======================  ==================================================================
'''
