"""Every transformer and UNet of diffusers in small, and what each must show if transformed."""
