"""From noise to latents: sigmas, samplers, guidance, and the one way to draw."""
