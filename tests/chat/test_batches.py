"""Which requests share a batch."""

import asyncio

from affectgpt.chat.batches import Batcher
from affectgpt.chat.request import Reply
from affectgpt.serve.models import Prepared, may_share_batch
from affectgpt.serve.request import Decoding


def test_batches_hold_equal_settings_in_order_and_no_more_than_allowed():
    batches = []

    def generate(items):
        batches.append([item.inputs for item in items])
        return [Reply(item.inputs, 0, 0, "eos") for item in items]

    async def main():
        batcher = Batcher(generate, max_batch=3, max_wait_s=0.02, fit=may_share_batch)
        work = asyncio.ensure_future(batcher.run())
        settings = [
            Decoding(8),
            Decoding(9),
            Decoding(8),
            Decoding(8),
            Decoding(8),
            Decoding(8, 1.0, 1.0, 3),
            Decoding(8, 1.0, 1.0, 3),
        ]
        futures = [batcher.put(Prepared(str(place), decoding, {})) for place, decoding in enumerate(settings)]
        futures[4].cancel()
        futures.append(batcher.put(Prepared("7", Decoding(8), {})))
        replies = [await future for place, future in enumerate(futures) if place != 4]
        work.cancel()
        return [reply.text for reply in replies]

    assert asyncio.run(main()) == ["0", "1", "2", "3", "5", "6", "7"]
    assert sorted(batches) == [["0", "2", "3"], ["1"], ["5"], ["6"], ["7"]]
