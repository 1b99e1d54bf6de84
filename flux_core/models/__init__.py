"""FLUX.1 as modules: transformer, ControlNets, VAE, text encoders, and what tells their sizes."""
