"""Answers in the protocol's form: one JSON object, or server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from affectgpt.chat.request import Reply
from affectgpt.runtime import UserError
from affectgpt.serve.problems import Problem

log = logging.getLogger("affectgpt")

KEEP_ALIVE_S = 10.0  # between comments in a stream that waits for its answer
_FINISH = {"eos": "stop", "length": "length"}


def reply_of(future: asyncio.Future[Reply]) -> Reply:
    """The answer; what the user can mend is a Problem, anything else is raised as it is."""
    try:
        return future.result()
    except UserError as error:
        raise Problem(400, str(error)) from error


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


class Draft:
    """The text of a streamed answer as far as it is written.

    Attributes:
        changed: there is more of it.
    """

    def __init__(self) -> None:
        self.text = ""
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def write(self, text: str) -> None:
        """All that is certain so far; to be called from any thread."""
        self._loop.call_soon_threadsafe(self._grow, text)

    def _grow(self, text: str) -> None:
        if len(text) > len(self.text):  # a batch that is tried again begins anew
            self.text = text
            self.changed.set()


async def events(
    head: Mapping[str, Any], future: asyncio.Future[Reply], draft: Draft, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of one answer: the role at once, the text as it is written, then how it ended."""

    def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        row = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"

    future.add_done_callback(lambda _: draft.changed.set())
    sent = ""
    try:
        yield event({"role": "assistant", "content": ""})
        while True:
            try:
                await asyncio.wait_for(draft.changed.wait(), KEEP_ALIVE_S)
            except asyncio.TimeoutError:
                yield ": waiting\n\n"
                continue
            draft.changed.clear()
            is_done = future.done()
            problem = _failure_of(future) if is_done else None
            if problem is None:
                text = future.result().text if is_done else draft.text
                if not text.startswith(sent):
                    problem = Problem(500, "its batch had to be tried again and wrote another answer; ask again")
            if problem is not None:
                log.error("a streamed request failed: %s", problem)
                yield f"data: {json.dumps(problem.body())}\n\n"
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


def _failure_of(future: asyncio.Future[Reply]) -> Problem | None:
    """Why a stream has no answer; its status line has been sent, so nothing can be raised any more."""
    error = future.exception()
    if error is None:
        return None
    return Problem(400 if isinstance(error, UserError) else 500, str(error))
