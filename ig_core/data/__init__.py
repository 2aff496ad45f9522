"""Data to train on: latents, their shards, normalisation and checks."""
