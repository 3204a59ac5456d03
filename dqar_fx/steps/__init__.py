"""Which step of which run, and which stream, a call of the denoiser is."""
