"""The two-tower step, the trainer around it, and a run's stages."""
