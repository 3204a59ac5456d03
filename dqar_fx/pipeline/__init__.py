"""A stock pipeline as the unit of use: transformed, followed, and told about."""
