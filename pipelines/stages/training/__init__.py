"""Train stage: start, work, publication, and published checkpoints."""
