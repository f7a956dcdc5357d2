"""python -m affectgpt.demo; --help says how."""

import sys

from affectgpt.demo.command import main

if __name__ == "__main__":
    sys.exit(main())
