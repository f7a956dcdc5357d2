"""The two rounds in which people check records: tasks out, answers in, agreement."""

from affectgpt.annotate.review.rounds import checked_clues

__all__ = ["checked_clues"]
