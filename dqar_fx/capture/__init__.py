"""A model and one call of it become an ATen graph; repeated blocks are traced once."""
