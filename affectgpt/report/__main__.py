"""python -m affectgpt.report; --help shows how."""

from affectgpt.cli import main

if __name__ == "__main__":
    main("report")
