"""Our data, benchmarks and rewards in the forms of other tools (docs/other-tools.md).

command.py      `python -m affectgpt.data export`
rows.py         conversations for ms-swift and LLaMA-Factory
rewards.py      our rewards for ms-swift
lmms_eval.py    benchmarks as tasks of lmms-eval
"""
