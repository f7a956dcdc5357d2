"""Training stages: `stages` puts a run together, `trainer` is the small subclass of transformers' Trainer, `schedule`
the learning rate, `checkpoints` finds them, `callbacks` is what a person sees of a run."""
