"""Diffusion and flow matching on padded tokens: schedules, losses, samplers, guidance, noise.

Tensors and masks only; nothing here knows what a crystal is.
"""
