"""Annotation: from raw clips to described and labelled clips, with provenance.

Each clip gets one `record`. A `pipeline` of `steps` fills it: `evidence` measures, `annotators` answer the questions of
`prompts` (`local` by rules), `checks` judge the result. `single` runs the pipeline over many `clips` in one process,
`shards` in many; the `store` keeps every answer. `verbs` are the commands on records, `review` is the human review.
"""
