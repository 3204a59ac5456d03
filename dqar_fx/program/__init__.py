"""What runs: lowered regions, packed weights, and a program per input signature."""
