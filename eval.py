"""python eval.py --help"""

from affectgpt.cli import main

if __name__ == "__main__":
    main("eval")
