"""python -m affectgpt.hub; --help says how."""

import sys

from affectgpt.cli import hub

if __name__ == "__main__":
    hub(sys.argv[1:])
