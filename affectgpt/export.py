"""python -m affectgpt.export; --help says how."""

from affectgpt.cli import export

if __name__ == "__main__":
    export()
