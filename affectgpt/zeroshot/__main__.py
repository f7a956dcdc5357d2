"""python -m affectgpt.zeroshot; --help says how."""

from affectgpt.cli import zeroshot

if __name__ == "__main__":
    zeroshot()
