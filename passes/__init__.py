"""Graph passes: each edits an fx graph in place and returns its number of rewrites.

All keep every value bit for bit in eager mode, `insert_guards` and `specialise` as long as all
actions are COMPUTE, and `fix_sizes` at the sizes that it is given.
`unify_layouts`, `narrow_linears`, `prepack_linears` and `turn_skinny_linears` are for
compilers only: another layout may take another kernel, another order of sums
rounds differently.
"""

from .expand_repeats import CannotExpand, expand_repeats
from .expose_attention import expose_attention
from .find_attention import find_attention
from .find_feed_forward import find_feed_forward
from .find_residuals import find_residuals
from .find_sites import find_around, find_sites
from .fix_sizes import fix_sizes
from .free_sizes import free_sizes
from .hoist_conditioning import hoist_conditioning
from .insert_guards import insert_guards
from .keep_keys_values import keep_keys_values
from .merge_duplicates import merge_duplicates
from .merge_equal_parameters import merge_equal_parameters
from .narrow_linears import narrow_linears
from .normalise import normalise
from .outline_regions import outline_regions
from .prepack_linears import prepack_linears
from .site_kinds import SITE_KINDS, SiteKind
from .specialise import specialise
from .support.formats import FORMATS, CacheFormat
from .support.guards import compute_or_reuse
from .support.vocabulary import NoMatch, Site, TensorSpec
from .turn_skinny_linears import turn_skinny_linears
from .unify_layouts import unify_layouts

__all__ = [
    "FORMATS",
    "SITE_KINDS",
    "CacheFormat",
    "CannotExpand",
    "NoMatch",
    "Site",
    "SiteKind",
    "TensorSpec",
    "compute_or_reuse",
    "expand_repeats",
    "expose_attention",
    "find_around",
    "find_attention",
    "find_feed_forward",
    "find_residuals",
    "find_sites",
    "fix_sizes",
    "free_sizes",
    "hoist_conditioning",
    "insert_guards",
    "keep_keys_values",
    "merge_duplicates",
    "merge_equal_parameters",
    "narrow_linears",
    "normalise",
    "outline_regions",
    "prepack_linears",
    "specialise",
    "turn_skinny_linears",
    "unify_layouts",
]
