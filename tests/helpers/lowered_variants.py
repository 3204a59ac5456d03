"""What a lowering has made of a region so far."""


def count_variants(lowering, region):
    """Distinct lowered variants of a region so far."""
    known = lowering._known.items()
    return len({variant.structure for (of, *_), variant in known if of is region})
