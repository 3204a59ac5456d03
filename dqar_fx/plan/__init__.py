"""An outlined graph as numbered region calls, what each row of them reads, and the slots."""
