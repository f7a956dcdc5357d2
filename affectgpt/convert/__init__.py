"""Published checkpoints -> base models and projections of this package."""
