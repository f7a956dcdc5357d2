"""python train.py --help"""

from affectgpt.cli import main

if __name__ == "__main__":
    main("train")
