"""Answers in the protocol's form: one JSON object, or server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from affectgpt.runtime import UserError
from affectgpt.serve.models import Reply
from affectgpt.serve.problems import Problem

log = logging.getLogger("affectgpt")

KEEP_ALIVE_S = 10.0  # between comments in a stream that waits for its answer
_FINISH = {"eos": "stop", "length": "length"}


def reply_of(future: asyncio.Future[Reply]) -> Reply:
    """The answer; what the user can mend is a Problem, anything else is raised as it is."""
    try:
        return future.result()
    except (UserError, ValueError) as error:
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


async def events(head: Mapping[str, Any], future: asyncio.Future[Reply], include_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of one answer: the role at once, the text when its batch is done, then how it ended."""

    def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        row = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        while not (await asyncio.wait([future], timeout=KEEP_ALIVE_S))[0]:
            yield ": waiting\n\n"
        if (error := future.exception()) is not None:
            log.error("a streamed request failed: %s", error)
            problem = Problem(400 if isinstance(error, (UserError, ValueError)) else 500, str(error))
            yield f"data: {json.dumps(problem.body())}\n\n"
        else:
            reply = future.result()
            yield event({"content": reply.text})
            yield event({}, _FINISH[reply.finish], affectgpt=reply.facts)
            if include_usage:
                yield event({}, choices=[], usage=_usage(reply))
        yield "data: [DONE]\n\n"
    finally:
        future.cancel()
