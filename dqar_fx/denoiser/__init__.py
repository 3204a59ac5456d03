"""The module that stands where the model stood."""
