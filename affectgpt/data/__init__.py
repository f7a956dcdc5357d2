"""From annotation files to the samples that a model sees: `sources` (manifests, splits, probing), `clips` (decoding),
`features` (the cache of frozen encoder states) and `stream` (which sample comes n-th in a training run)."""
