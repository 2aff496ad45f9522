"""Sources of images and latents: found, listed, labelled and read row by row."""
