"""Training: the state, the loop, batches, optimizers, and sharding over workers."""
