"""An OpenAI-compatible server for one model. Requests that arrive together are answered in one batch.

A request passes `app.Admission` (key, limit on open requests), `request.read_request` (JSON to a `ChatRequest`),
`models.prepare` in a thread (decode media, write the prompt), `chat.batches.Batcher` (one generation at a time) and
`replies` (JSON or server-sent events). docs/serve.md describes requests and responses.
"""
