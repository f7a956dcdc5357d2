"""Parameters, memory, operations and speed of a run before it is started."""
