"""A model and one call of it become an ATen graph, exactly; repeated blocks are traced once."""
