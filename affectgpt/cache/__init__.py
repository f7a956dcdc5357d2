"""Encoder states on disk: store, reader, build and care."""
