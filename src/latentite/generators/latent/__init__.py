"""The latent diffusion model as a generator."""
