"""Gates that decide by noise, attention entropy or a learned policy, at one reuse ratio."""
