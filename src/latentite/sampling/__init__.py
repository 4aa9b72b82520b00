"""From a trained latent diffusion model to crystals in memory: what is asked (`jobs`), how it is walked (`chain`)."""
