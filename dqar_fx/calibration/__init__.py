"""What is measured of one model on its own pipeline, and the policies learnt from it."""
