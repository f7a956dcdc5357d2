"""python -m affectgpt.data; --help says how."""

import sys

from affectgpt.data.command import main

if __name__ == "__main__":
    sys.exit(main())
