"""From annotation files to training samples: published formats, manifests and splits (`formats`, `sources`), decoding
(`clips`), checks (`health`, `leaks`), and the order of samples in a training run (`stream`)."""
