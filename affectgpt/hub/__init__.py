"""Releases: full folders, the hub, model cards."""
