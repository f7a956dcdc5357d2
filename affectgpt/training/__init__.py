"""Training: `stages` runs a stage, `objectives` has the losses, `study` compares ways of training."""
