"""python train.py --help"""

from affectgpt.cli import train

if __name__ == "__main__":
    train()
