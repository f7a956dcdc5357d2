"""Zero-shot runs of other models: in process, behind a server, or by files that another environment answers."""
