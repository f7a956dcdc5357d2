"""python -m affectgpt.convert; --help says how."""

import sys

from affectgpt.convert.command import main

if __name__ == "__main__":
    sys.exit(main())
