"""A stream holds the answer of a request that is not streamed."""

import openai
import pytest

from .conftest import Slow, ask, running, text, video


def test_a_stream_holds_the_same_answer_in_events(client):
    whole = ask(client, video("clip0.mp4"))
    chunks = list(ask(client, video("clip0.mp4"), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].affectgpt == whole.affectgpt
    assert chunks[-1].usage == whole.usage


def test_a_failure_in_a_stream_is_an_error_of_the_client():
    slow = Slow()
    slow.go.set()
    with running(slow) as (client, _), pytest.raises(openai.APIError, match="a bad question"):
        list(ask(client, text("bad"), stream=True))
