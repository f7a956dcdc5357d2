"""Answers in the form of the protocol: one JSON object, or server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from affectgpt.chat.request import Reply
from affectgpt.runtime import UserError
from affectgpt.serve.errors import APIError

log = logging.getLogger("affectgpt")

KEEP_ALIVE_S = 10.0  # between comments in a stream without new text
_FINISH = {"eos": "stop", "length": "length"}


def reply_of(future: asyncio.Future[Reply]) -> Reply:
    """The answer; a user's error becomes a APIError, any other is raised unchanged."""
    try:
        return future.result()
    except UserError as error:
        raise APIError(400, str(error)) from error


def completion(head: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """The object of an answer that is not streamed."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text},
        "finish_reason": _FINISH[reply.finish],
        "logprobs": None,
    }
    return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(reply), "affectgpt": reply.facts}


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.n_prompt_tokens,
        "completion_tokens": reply.n_new_tokens,
        "total_tokens": reply.n_prompt_tokens + reply.n_new_tokens,
    }


class PartialText:
    """The text of a streamed answer so far.

    Attributes:
        changed: set when there is more text.
    """

    def __init__(self) -> None:
        self.text = ""
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def write(self, text: str) -> None:
        """Set the text so far; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._grow, text)

    def _grow(self, text: str) -> None:
        if len(text) > len(self.text):  # a batch that is retried starts over
            self.text = text
            self.changed.set()


async def events(
    head: Mapping[str, Any], future: asyncio.Future[Reply], partial: PartialText, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of one answer: the role at once, the text as it is generated, then the finish reason."""

    def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        row = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"

    future.add_done_callback(lambda _: partial.changed.set())
    sent = ""
    try:
        yield event({"role": "assistant", "content": ""})
        while True:
            try:
                await asyncio.wait_for(partial.changed.wait(), KEEP_ALIVE_S)
            except asyncio.TimeoutError:
                yield ": waiting\n\n"
                continue
            partial.changed.clear()
            is_done = future.done()
            error = _failure_of(future) if is_done else None
            if error is None:
                text = future.result().text if is_done else partial.text
                if not text.startswith(sent):
                    error = APIError(500, "its batch was retried and gave another answer; send the request again")
            if error is not None:
                log.error("a streamed request failed: %s", error)
                yield f"data: {json.dumps(error.body())}\n\n"
                break
            if text != sent:
                yield event({"content": text[len(sent) :]})
                sent = text
            if is_done:
                reply = future.result()
                yield event({}, _FINISH[reply.finish], affectgpt=reply.facts)
                if include_usage:
                    yield event({}, choices=[], usage=_usage(reply))
                break
        yield "data: [DONE]\n\n"
    finally:
        future.cancel()


def _failure_of(future: asyncio.Future[Reply]) -> APIError | None:
    """The error of a stream, to be sent as an event: its status line has been sent already."""
    error = future.exception()
    if error is None:
        return None
    return APIError(400 if isinstance(error, UserError) else 500, str(error))
