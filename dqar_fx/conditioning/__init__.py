"""What does not read the latent: evaluated ahead of time, released, or dropped."""
