"""Samples to predictions.

infer.py        the command infer.py
evaluate.py     the command eval.py: scores a predictions file, without torch; a checkpoint first writes one
loading.py      a checkpoint, ready to answer
prediction.py   predictions for many samples, appended to a file that a second run continues
answers.py      answers to encoded samples
vllm.py         the same with vLLM
"""
