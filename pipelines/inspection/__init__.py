"""Readers behind `igdit inspect`: checkpoints, codecs and latents."""
