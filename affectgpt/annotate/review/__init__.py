"""Human review in two rounds: tasks out to Label Studio, answers in, votes folded into confirmed records.

The folder of a review:

    review.json           the rounds: annotators, seed, who reviews which clip
    round1/               input for Label Studio: <screen>.<medium>.xml and <screen>.<medium>.<annotator>.json
    answers.jsonl         one line per answer; the newest of a (round, screen, clip, annotator) counts
    changes.jsonl         who changed what
    review_report.json    counts and agreement
    records.jsonl, manifest.jsonl     the clips that both rounds have confirmed

`setup` holds review.json, `tasks` writes a round, `answers` reads exports, `votes` combines the answers of a round,
`changes` counts them, `finish` writes what they give; `labelstudio` knows Label Studio's formats.
"""

from affectgpt.annotate.review.step import checked_clues

__all__ = ["checked_clues"]
