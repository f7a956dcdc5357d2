"""Samples -> predictions: checkpoints that are ready to answer, and the commands around them."""
