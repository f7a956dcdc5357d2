"""One request to a real local server: retries and pauses, refused parameters, and what is not an answer."""

import asyncio
import gzip
import json
import time

import pytest

from affectgpt.chat import completion, transport
from affectgpt.chat.completion import read_completion, retry_after_s
from affectgpt.chat.concurrency import Stopped, StopSignal
from affectgpt.chat.transport import ChatError, Endpoint, Known, RateLimiter, RequestFailed, Server
from tests.chat.chat_server import ChatServer

BODY = {"model": "toy", "messages": [{"role": "user", "content": "a"}], "max_tokens": 7, "temperature": 0.0}


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer() as running:
        yield running


def complete(url, *bodies, known=None, **options):
    """The answers to `bodies`, one after the other, and the endpoint."""

    async def main():
        server = Server(url, **{"backoff_s": 0.01, **options})
        endpoint = Endpoint("toy", server, StopSignal(), known)
        try:
            return [await endpoint.complete(body) for body in bodies], endpoint
        finally:
            await endpoint.close()

    return asyncio.run(main())


def test_an_answer_has_the_text_the_counts_and_who_gave_it(server):
    (answer,), _ = complete(server.url, BODY)
    assert (answer.text, answer.finish, answer.tokens_in, answer.tokens_out) == ("A", "stop", 3, 2)
    assert answer.answered_by == "toy-served"
    assert server.requests == [BODY]


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, 408, "hang up", "cut", "no json", "no choices"])
def test_a_temporary_fault_is_retried(server, fault):
    server.faults = [fault, fault]
    (answer,), endpoint = complete(server.url, BODY)
    assert answer.text == "A"
    assert endpoint.retries == 2
    assert len(server.requests) == 3


def test_waits_grow_and_retry_after_is_obeyed(server):
    server.faults = [500, 500, 500]
    complete(server.url, BODY, backoff_s=0.1)
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert waits[0] >= 0.05
    assert waits[2] >= 0.2
    server.times.clear()
    server.faults = [("retry-after", 0.4)]
    complete(server.url, BODY)
    assert server.times[1] - server.times[0] >= 0.4


@pytest.mark.parametrize(
    ("header", "expected"),
    [("2", 2.0), ("1e9", 300.0), ("-1", 0.0), ("nan", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), (None, None)],
)
def test_a_retry_after_header_is_seconds_within_bounds(header, expected):
    assert retry_after_s(header) == expected


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_the_time_limit_is_for_the_attempt_not_for_the_gap_between_two_bytes(server, fault):
    server.faults = [fault]
    (answer,), endpoint = complete(server.url, BODY, timeout_s=1)
    assert (answer.text, endpoint.retries) == ("A", 1)
    server.faults = [fault]
    with pytest.raises(RequestFailed, match=r"no complete answer within 0\.1 s \(1 attempt\)"):
        complete(server.url, BODY, timeout_s=0.1, max_retries=0)


def test_an_answer_without_end_is_cut_off_also_if_it_is_compressed(server, monkeypatch):
    for module in (completion, transport):
        monkeypatch.setattr(module, "LONGEST_ANSWER", 1 << 20)
    server.faults = [
        {"value": b" " * (2 << 20)},
        {"value": gzip.compress(b" " * (2 << 20)), "headers": {"Content-Encoding": "gzip"}},
    ]
    for _ in range(2):
        with pytest.raises(RequestFailed, match=r"an answer of more than 1 MB \(1 attempt\)"):
            complete(server.url, BODY)


def test_a_body_that_is_compressed_twice_is_never_unpacked(server):
    bomb = gzip.compress(gzip.compress(b" " * (2 << 20)))
    server.faults = [{"value": bomb, "headers": {"Content-Encoding": "gzip, gzip"}}]
    with pytest.raises(
        RequestFailed, match=r"the Content-Encoding 'gzip, gzip', which was not asked for \(1 attempt\)"
    ):
        complete(server.url, BODY)


def test_a_compressed_answer_that_was_not_asked_for_is_read_and_a_damaged_one_is_retried(server):
    whole = gzip.compress(json.dumps(message("B")).encode())
    server.faults = [
        {"value": data, "headers": {"Content-Encoding": "gzip"}} for data in (whole[:20], b"no gzip", whole)
    ]
    (answer,), endpoint = complete(server.url, BODY)
    assert (answer.text, endpoint.retries) == ("B", 2)


def test_a_redirect_is_not_followed(server):
    with ChatServer() as other:
        server.faults = [{"status": 307, "headers": {"Location": f"{other.url}/chat/completions"}}]
        with pytest.raises(ChatError, match=r"HTTP 307: redirected, which is not followed, to http://.*check model"):
            complete(server.url, BODY)
        assert not other.requests


def message(content, **more):
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **more}]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"<html>busy</html>", "an answer that is not JSON: <html>busy</html>"),
        (b"\xff\xfe\x00", "an answer that is not JSON: "),
        (b"[" * 200_000, "an answer that is not JSON: "),
        ([], r"an answer without choices\[0\].message.content: \[\]"),
        ({"error": {"message": "model is loading"}}, "an error instead of an answer: model is loading"),
        ({"error": "no quota"}, "an error instead of an answer: no quota"),
        ({"error": {"message": "loading", "code": 503}}, "an error instead of an answer: loading"),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "an answer that is not JSON: data: "),
        ({"choices": None}, "an answer without choices"),
        ({"choices": []}, r'an answer without choices.0..message.content: \{"choices": \[\]\}'),
        ({"choices": "none"}, "an answer without choices.0..message.content: .*none"),
        ({"choices": {"0": {}}}, "an answer without choices"),
        ({"choices": ["a"]}, "an answer without choices"),
        ({"choices": [{"message": None}]}, "an answer without choices"),
        ({"choices": [{"text": "a"}]}, "an answer without choices"),
        (message(3), "an answer without choices"),
        (message({"text": "a"}), "an answer without choices"),
        (message("a", finish_reason=1), "an answer without choices"),
    ],
)
def test_an_invalid_answer_is_an_error_that_quotes_the_server(server, value, words):
    server.faults = [{"value": value}] * 2
    with pytest.raises(RequestFailed, match=words) as error:
        complete(server.url, BODY, max_retries=1)
    assert len(str(error.value)) < 450
    assert len(server.requests) == 2


def test_an_answer_of_another_form_is_retried_twice_at_most(server):
    server.choose = lambda body: {"value": b"<html>console</html>"}
    with pytest.raises(RequestFailed, match=r"not JSON: <html>console</html> \(3 attempts\)"):
        complete(server.url, BODY)


def test_faults_of_another_kind_do_not_use_up_the_retries_of_an_invalid_answer(server):
    server.faults = [503, "hang up", "cut", "no json", "no choices"]
    (answer,), endpoint = complete(server.url, BODY)
    assert (answer.text, endpoint.retries) == ("A", 5)


@pytest.mark.parametrize(
    ("status", "value"),
    [
        (400, {"error": {"message": "Model Not Exist"}}),
        (429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}),
        (200, {"error": {"message": "no credits", "code": 402}}),
    ],
)
def test_a_missing_model_and_an_empty_account_stop_everything_at_once(server, status, value):
    server.choose = lambda body: {"status": status, "value": value}
    with pytest.raises(ChatError, match="check model, base_url") as error:
        complete(server.url, BODY)
    assert not isinstance(error.value, RequestFailed)
    assert len(server.requests) == 1


def test_a_refusal_in_place_of_text_is_no_text():
    for content in (None, "", [{"type": "refusal", "refusal": "I can't."}]):
        refusal = {"choices": [{"message": {"content": content, "refusal": "I can't."}, "finish_reason": "stop"}]}
        answer = read_completion(json.dumps(refusal).encode(), {})
        assert (answer.text, answer.finish, answer.refusal) == ("", "refusal", "I can't.")
    reasoning = {"choices": [{"message": {"content": None, "reasoning_content": "Hm."}, "finish_reason": "length"}]}
    answer = read_completion(json.dumps(reasoning).encode(), {})
    assert (answer.text, answer.finish, answer.refusal) == ("", "length", None)


def test_content_in_parts_is_joined_and_none_is_an_empty_answer():
    parts = [{"type": "text", "text": "She "}, {"type": "refusal", "refusal": "?"}, {"type": "text", "text": "smiles."}]
    for content, text in ((parts, "She smiles."), (None, ""), ([], ""), ("\ud83d", "?")):
        assert read_completion(json.dumps(message(content)).encode(), {}).text == text


def test_invalid_token_counts_are_ignored():
    endless = {"prompt_tokens": float("inf"), "completion_tokens": 10**400}
    for usage in (
        None,
        "few",
        {"prompt_tokens": "3", "completion_tokens": True},
        {"prompt_tokens": float("nan")},
        endless,
    ):
        answer = read_completion(json.dumps({**message("a"), "usage": usage, "model": 3}).encode(), {})
        assert (answer.tokens_in, answer.tokens_out, answer.answered_by) == (None, None, None)


REFUSALS = {
    "max_tokens": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
        "param": "max_tokens",
    },
    "temperature": {
        "message": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value "
        "is supported.",
        "param": "temperature",
    },
}


def newer(body):
    """A server that refuses both parameters, one at a time."""
    for name, error in REFUSALS.items():
        if name in body:
            return {"status": 400, "value": {"error": error}}
    return None


def test_parameters_that_a_newer_model_refuses_are_replaced_once_and_that_is_remembered(server, caplog):
    server.choose = newer
    known = Known()
    answers, endpoint = complete(server.url, BODY, BODY, known=known)
    assert [answer.text for answer in answers] == ["A", "A"]
    assert known.adapted == answers[1].adapted == {"max_tokens": "max_completion_tokens", "temperature": None}
    assert len(server.requests) == 4  # two refusals, two answers
    assert server.requests[-1] == {"model": "toy", "messages": BODY["messages"], "max_completion_tokens": 7}
    assert endpoint.retries == 0
    assert caplog.text.count("refuses max_tokens, so max_completion_tokens is sent instead") == 1
    assert caplog.text.count("refuses temperature, so it is left out") == 1
    assert complete(server.url, BODY, known=known)[0][0].text == "A"
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("max_tokens", {"message": "this model takes max_completion_tokens, not max_tokens"}),
        ("max_tokens", {"message": "bad request", "param": "max_tokens", "code": "unsupported_parameter"}),
        ("max_tokens", "参数max_tokens不可用"),
        ("temperature", {"message": "invalid temperature: only 1 is allowed for this model"}),
        ("temperature", {"message": "no value between 0 and 1", "param": "temperature", "code": "unsupported_value"}),
    ],
)
def test_a_refusal_is_noticed_whatever_its_words(server, name, error):
    server.choose = lambda body: {"status": 400, "value": {"error": error}} if name in body else None
    (answer,), _ = complete(server.url, BODY)
    assert (answer.text, list(answer.adapted), len(server.requests)) == ("A", [name], 2)


def test_an_error_that_only_quotes_the_request_changes_no_later_one(server):
    server.choose = lambda body: (
        {"status": 400, "value": {"detail": json.dumps(body)}} if body["messages"] != BODY["messages"] else None
    )
    known = Known()
    with pytest.raises(RequestFailed, match=r"HTTP 400: .*hateful"):
        complete(server.url, {**BODY, "messages": "hateful"}, known=known)
    assert known.adapted == {}
    complete(server.url, BODY, known=known)
    assert server.requests[-1] == BODY


@pytest.mark.parametrize("words", ["temperature must be at least 0", "max_tokens: this model supports at most 6"])
def test_a_parameter_with_a_wrong_value_is_an_error_not_a_refusal(server, words):
    server.choose = lambda body: {"status": 400, "value": {"error": {"message": words}}}
    with pytest.raises(RequestFailed, match=f"HTTP 400: {words}"):
        complete(server.url, BODY)
    assert len(server.requests) == 1


def test_a_refusal_that_stays_is_an_error_after_one_change(server):
    error = {"message": "max_tokens and max_completion_tokens are not supported"}
    server.choose = lambda body: {"status": 400, "value": {"error": error}}
    with pytest.raises(RequestFailed, match="HTTP 400: max_tokens and"):
        complete(server.url, BODY)
    assert len(server.requests) == 2


def test_a_key_across_the_end_of_a_quotation_is_redacted(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key\n")
    server.faults = [{"status": 400, "value": b"x" * 295 + b"sk-secret-key"}]
    with pytest.raises(RequestFailed) as error:
        complete(server.url, BODY)
    assert "sk-" not in str(error.value)
    assert server.keys == ["Bearer sk-secret-key"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000/v1", "base_url is not an address"),
        ("http://", "base_url is not an address"),
        ("http://[::1/v1", "base_url is not an address"),
    ],
)
def test_an_invalid_address_is_an_error_at_once(url, words):
    with pytest.raises(ChatError, match=words):
        complete(url, BODY)


def test_a_password_in_the_address_is_not_shown():
    with pytest.raises(RequestFailed, match="no connection"):
        complete("http://me:secret@127.0.0.1:9/v1", BODY, max_retries=0)
    assert Endpoint("m", Server("http://me:secret@a/v1"), StopSignal()).where == "m at http://me:***@a/v1"


def test_after_twenty_failures_in_a_row_the_server_is_left_alone(server):
    server.choose = lambda body: 500
    stop = StopSignal()

    async def main():
        endpoint = Endpoint("toy", Server(server.url, max_retries=0), stop)
        for _ in range(19):
            with pytest.raises(RequestFailed):
                await endpoint.complete(BODY)
        with pytest.raises(ChatError, match="20 requests in a row failed, the last with: HTTP 500"):
            await endpoint.complete(BODY)
        with pytest.raises(Stopped):
            await endpoint.complete(BODY)
        await endpoint.close()

    asyncio.run(main())
    assert (stop.reason, len(server.requests)) == ("error", 20)


def test_a_stop_ends_the_pause_before_the_next_attempt(server):
    server.faults = [("retry-after", 300)]

    async def main():
        stop = StopSignal()
        endpoint = Endpoint("toy", Server(server.url), stop)
        asyncio.get_running_loop().call_later(0.1, stop.set, "SIGINT")
        with pytest.raises(Stopped):
            await asyncio.wait_for(endpoint.complete(BODY), 60)
        await endpoint.close()

    asyncio.run(main())


def test_a_rate_limit_lets_a_burst_through_and_then_the_rate():
    async def main():
        limiter, stop = RateLimiter(600), StopSignal()
        started = time.monotonic()
        for _ in range(6):
            await limiter.take(10, stop)  # 60 at once, 10 a second after that
        await limiter.take(5, stop)
        limiter.give_back(5)
        return time.monotonic() - started

    assert asyncio.run(main()) >= 0.45
