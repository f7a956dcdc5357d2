"""Requests share batches without seeing anything of each other."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from affectgpt.serve.ask import Wish
from affectgpt.serve.batches import Batcher
from affectgpt.serve.models import Prepared, Reply
from tests.serve.conftest import Slow, ask, running, text, video


def test_requests_that_arrive_together_share_batches_and_get_their_answers_one_by_one(server, inferred):
    client, url = server
    before = httpx.get(f"{url}/health").json()
    with ThreadPoolExecutor(12) as pool:
        names = [f"clip{number}" for number in range(12)]
        answers = pool.map(lambda name: ask(client, video(f"{name}.mp4"), affectgpt={"subtitle": "I see."}), names)
        texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [inferred[name]["text"] for name in names]
    after = httpx.get(f"{url}/health").json()
    assert after["answered"] - before["answered"] == 12
    assert after["batches"] - before["batches"] < 12
    assert 1 < after["largest_batch"] <= 8


def test_one_bad_request_of_a_batch_fails_alone():
    slow = Slow()
    with running(slow, config={"max_wait_ms": 300}) as (client, _), ThreadPoolExecutor(3) as pool:
        slow.go.set()
        answers = [pool.submit(ask, client, text(word)) for word in ("good", "bad", "broken")]
        assert answers[0].result().choices[0].message.content == "GOOD"
        with pytest.raises(openai.BadRequestError, match="a bad question"):
            answers[1].result()
        with pytest.raises(openai.InternalServerError, match="its log says why"):
            answers[2].result()
    assert max(map(len, slow.batches)) == 3


def test_batches_hold_equal_wishes_in_order_and_no_more_than_allowed():
    batches = []

    def generate(items):
        batches.append([item.inputs for item in items])
        return [Reply(item.inputs, 0, 0, "eos", {}) for item in items]

    async def main():
        batcher = Batcher(generate, max_batch=3, max_wait_s=0.02)
        work = asyncio.ensure_future(batcher.run())
        wishes = [Wish(8), Wish(9), Wish(8), Wish(8), Wish(8), Wish(8, 1.0, 1.0, 3), Wish(8, 1.0, 1.0, 3)]
        futures = [batcher.put(Prepared(str(place), wish, {})) for place, wish in enumerate(wishes)]
        futures[4].cancel()
        futures.append(batcher.put(Prepared("7", Wish(8), {})))
        replies = [await future for place, future in enumerate(futures) if place != 4]
        work.cancel()
        return [reply.text for reply in replies]

    assert asyncio.run(main()) == ["0", "1", "2", "3", "5", "6", "7"]
    assert sorted(batches) == [["0", "2", "3"], ["1"], ["5"], ["6"], ["7"]]
