"""The embedded demo: a synthetic corpus of talking faces and small base models in the real on-disk formats."""
