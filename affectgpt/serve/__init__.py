"""A model behind the protocol of OpenAI's API. Requests that arrive together are answered in one batch.

The way of a request: `app.Gate` (key, room for it) -> `ask.read_ask` (JSON to an `Ask`) -> `models.prepare` in a thread
(decode media, write the prompt) -> `chat.batches.Batcher` (one generation at a time) -> `replies` (JSON or server-sent
events). What a request may hold, and what becomes of it: docs/serve.md.
"""
