"""How good pictures are: against others of the same seeds, and against real ones."""
