"""Codecs between images and latents: SD-VAE and VA-VAE."""
