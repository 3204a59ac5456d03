"""The way of the data from a model, an example call and a schedule to a program."""
