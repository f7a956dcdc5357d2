"""python -m affectgpt.serve; --help says how."""

from affectgpt.cli import serve

if __name__ == "__main__":
    serve()
