"""python -m affectgpt.cache; --help says how."""

import sys

from affectgpt.cache.command import main

if __name__ == "__main__":
    sys.exit(main())
