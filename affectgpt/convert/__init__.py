"""Published checkpoints -> base models and pretrained projectors of this package."""
