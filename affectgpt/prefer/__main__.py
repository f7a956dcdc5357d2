"""python -m affectgpt.prefer; --help shows how."""

from affectgpt.cli import main

if __name__ == "__main__":
    main("prefer")
