"""Pages in a browser: a gallery of predictions, trying a clip, and human review.

A request passes `door.Door` (host, origin, key, limits, headers) and reaches a route of `app`. `gallery` holds
predictions, references and their scores, `clips` what is in a clip (frames, sound, speech, pitch), `uploads` the
temporary files, `asking` the models, `reviewing` the review. The pages are the plain files in `static/`: ES modules
without a build step, which request nothing from other hosts and insert all texts as text. docs/studio.md describes use.
"""
