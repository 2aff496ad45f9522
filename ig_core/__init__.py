"""Internal Guidance for diffusion transformers (arXiv 2512.24176): the method.

Needs torch, NumPy, safetensors and PyArrow alone.

Import what you need from the modules; this package imports nothing by itself, so that
configurations (`ig_core.config`) can be read without loading torch.
"""
