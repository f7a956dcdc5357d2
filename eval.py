"""python eval.py --help"""

from affectgpt.cli import evaluate

if __name__ == "__main__":
    evaluate()
