"""The embedded default: a small synthetic corpus of talking faces and small base models in the real on-disk formats."""
