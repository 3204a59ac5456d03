"""The unconditional stream as an axis of its own."""
