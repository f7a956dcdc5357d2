"""The LLM's own arithmetic: packed training step, greedy generation, streaming. Imports nothing else of the package."""
