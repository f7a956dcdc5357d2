"""Which of two descriptions of a clip fits better: asked of models by four strategies, and scored (EmoPrefer)."""
