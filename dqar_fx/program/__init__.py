"""What runs: lowered regions, their packed weights, and the programs of all input signatures."""
