"""python -m affectgpt.annotate; --help says how."""

from affectgpt.cli import annotate

if __name__ == "__main__":
    annotate()
