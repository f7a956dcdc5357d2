"""python infer.py --help"""

from affectgpt.cli import infer

if __name__ == "__main__":
    infer()
