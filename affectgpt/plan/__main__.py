"""python -m affectgpt.plan; --help says how."""

from affectgpt.cli import plan

if __name__ == "__main__":
    plan()
