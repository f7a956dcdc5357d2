"""python -m affectgpt.study runs/table4: table and pictures of a sweep again, from what it left."""

import sys

from affectgpt.training.study import main

if __name__ == "__main__":
    sys.exit(main())
