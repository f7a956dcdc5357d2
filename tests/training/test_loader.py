"""Batches whose media are not encoded yet."""

import torch
from accelerate.utils import send_to_device

from affectgpt.training.loader import Uncollated


def test_an_uncollated_batch_is_not_moved_to_the_gpu():
    # It would move rows with cached states and leave new states on the CPU, which then cannot be collated.
    batch = Uncollated([[{"input_ids": torch.zeros(1)}]], [{}])
    moved = send_to_device(batch, torch.device("meta"))
    assert moved.rows[0][0]["input_ids"].device.type == "cpu"
