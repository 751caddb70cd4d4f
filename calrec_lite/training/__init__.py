"""A run's stages: the trainer around the step, micro-batches, the clock, hand-over."""
