"""Sets of images, folders of images, and the crop of ADM."""
