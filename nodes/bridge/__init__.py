"""Our parts behind the host's own wires: a MODEL that every stock sampler draws with, and a CLIP.

model           the transformer as the host calls its own
patches         other packs' patches around its blocks
weight_patches  the host's LoRAs as branches beside our weights
model_patcher   the value on a MODEL wire
clip            the value on a CLIP wire
host_sampling   the host's samplers and guiders, for FluxSampler
"""
