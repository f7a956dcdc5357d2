"""Downloading base models, exporting full models, publishing releases on the hub."""
