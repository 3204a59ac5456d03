"""Where a solver evaluates the denoiser, and how it adds up what it was given."""
