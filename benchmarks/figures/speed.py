"""Figure: how fast the configurations of the ablation are, and how far their pictures."""

from collections.abc import Sequence

from benchmarks.figures.bars import draw_bars, draw_legend
from benchmarks.figures.head import new_figure
from benchmarks.figures.naming import READING
from benchmarks.figures.rows import Row, is_near, psnr_of, read_timed_rows, show_psnr, speed_of
from benchmarks.figures.studio import Studio
from benchmarks.harness.plots import NEAR_DB, Drawn

HOW_TO_READ = (
    f"A bar is one way to run the same model: the longer, the faster. {READING} PSNR: how "
    "near the pictures are to the baseline's of the same seeds, the higher, the nearer; from "
    f"{NEAR_DB} dB on differences are hard to see."
)


def draw(studio: Studio) -> Drawn:
    """Draw the figure.

    Raises:
        RowsError: The ablation has not been run, or not timed.
    """
    timed = read_timed_rows(studio.options.ablation)
    figure = new_figure(make_title(timed), HOW_TO_READ, 12.6, 2.0 + 0.56 * len(timed))
    draw_bars(figure.subplots(), timed)
    draw_legend(figure, timed)
    return Drawn(figure, make_caption(timed))


def make_title(timed: Sequence[Row]) -> str:
    """The finding: the fastest that reuses, and the fastest whose pictures stay near."""
    reusing = [row for row in timed if row["keep"] is not None]
    if not reusing:
        return "No configuration that reuses attention has been timed"
    best = max(reusing, key=speed_of)
    title = f"Reusing attention gains at most {speed_of(best):.2f}x ({best['name']})"
    if best["psnr_db"] is None:
        return title
    if is_near(best):
        return f"{title}, and its pictures stay near the baseline's (PSNR {show_psnr(best)})"
    title += f", but with pictures far from the baseline's (PSNR {show_psnr(best)})"
    near = [row for row in reusing if is_near(row)]
    if near:
        kept = max(near, key=speed_of)
        return (
            f"{title}; of those that stay near, {kept['name']} is the fastest "
            f"({speed_of(kept):.2f}x, {show_psnr(kept)})"
        )
    nearest = max(reusing, key=psnr_of)
    return (
        f"{title}; {nearest['name']} comes nearest ({show_psnr(nearest)}), at "
        f"{speed_of(nearest):.2f}x"
    )


def make_caption(timed: Sequence[Row]) -> str:
    """The paragraph below the figure."""
    first = timed[0]
    return (
        f"Speed of the ablation's configurations on {first.get('model')} "
        f"({first.get('device')}: {first.get('processor')}, {first.get('cores')} cores, "
        f"lowering {first.get('lowering')}, guidance {first.get('guidance')}). A bar is the "
        f"median over {max(row.get('repeats') or 0 for row in timed)} interleaved repeats of "
        "the time of the baseline by that of the configuration, its whisker the lowest and "
        "the highest; the baseline is the untransformed model, compiled as the others are. "
        "The orange mark is the ceiling: what the speed would be if time were "
        "multiply-accumulates. PSNR: peak signal-to-noise ratio of the pictures against the "
        "baseline's of the same seeds. Fewer steps draw other noise under DDPM, so that their "
        "pictures have no such number."
    )
