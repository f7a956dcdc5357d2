import logging
import os
import signal
import time

import numpy as np
import pytest

from affectgpt.media import (
    DamagedMedia,
    DecoderCrashed,
    MissingMedia,
    isolatable,
    isolated_media,
    probe,
    read_audio,
    read_frame_sets,
)
from affectgpt.runtime import InputError
from affectgpt.spread import in_threads
from tests.media.media_files import numbered_clip, sine, write_media


@isolatable
def misbehave(path, how):
    """A decoder with a bug; tests call it in another process only."""
    logging.getLogger("affectgpt").warning("%s: read in %d", path, os.getpid())
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(60)
    if how == "memory":
        return np.ones(1 << 40, np.uint8)
    if how == "bug":
        raise KeyError("a bug of ours")
    if how == "stop once" and not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
    return os.getpid()


def test_before_and_after_the_context_files_are_read_in_this_process_and_no_process_is_left(tmp_path):
    """First in this file: `processes` is active in all others."""
    assert misbehave("a.mp4", "") == os.getpid()
    with isolated_media(1):
        number = misbehave("a.mp4", "")
        with isolated_media(1):
            assert misbehave("a.mp4", "") == number
    assert misbehave("a.mp4", "") == os.getpid()
    path = write_media(tmp_path / "clip.mp4", numbered_clip(3))
    with isolated_media(1, max_pixels=64 * 48 - 1), pytest.raises(DamagedMedia, match="claims pictures of 64 x 48"):
        read_frame_sets(path, {"frames": 2})
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_contexts_that_overlap_share_the_processes_until_the_last_one_ends():
    first, second = isolated_media(1, max_pixels=100), isolated_media(1, max_pixels=100)
    first.__enter__()
    second.__enter__()
    number = misbehave("a.mp4", "")
    first.__exit__(None, None, None)
    assert misbehave("a.mp4", "") == number != os.getpid()
    with pytest.raises(InputError, match="next to a server of this process with the limit 100"):
        isolated_media(1, max_pixels=50).__enter__()
    second.__exit__(None, None, None)
    assert misbehave("a.mp4", "") == os.getpid()


@pytest.fixture(scope="module")
def processes():
    with isolated_media(2, timeout_s=2):
        yield


def test_isolated_reading_equals_reading_here(processes, tmp_path):
    path = write_media(tmp_path / "clip.mp4", numbered_clip(12), sound=sine(0.5))
    assert probe(path) == probe.__wrapped__(path)
    frames, here = (read(path, {"frames": 8})["frames"] for read in (read_frame_sets, read_frame_sets.__wrapped__))
    np.testing.assert_array_equal(frames.images, here.images)
    np.testing.assert_array_equal(read_audio(path).samples, read_audio.__wrapped__(path).samples)
    assert misbehave("x", "") != os.getpid()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segfault", r"a\.mp4: the decoder crashed \(SIGSEGV\); the file is probably damaged"),
        ("hang", r"a\.mp4: reading it took more than 2 s and was stopped"),
        ("memory", r"a\.mp4: reading it takes more than 8 GiB of memory"),
    ],
)
def test_a_crash_a_hang_or_a_claim_of_memory_names_the_file_and_the_next_is_read(processes, how, message):
    with pytest.raises(DecoderCrashed, match=message) as caught:
        misbehave("a.mp4", how)
    assert isinstance(caught.value, DamagedMedia)
    assert misbehave("b.mp4", "") > 0


def test_errors_of_the_file_and_bugs_of_ours_are_raised_as_they_are(processes, tmp_path):
    with pytest.raises(MissingMedia, match=r"gone\.mp4: no such file") as caught:
        probe(tmp_path / "gone.mp4")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(KeyError, match="a bug of ours") as bug:
        misbehave("a.mp4", "bug")
    assert "in misbehave" in bug.value.__notes__[0]


def test_warnings_are_logged_here(processes, caplog):
    with caplog.at_level(logging.WARNING, logger="affectgpt"):
        number = misbehave("a.mp4", "")
    assert caplog.messages == [f"a.mp4: read in {number}"]


def test_a_process_that_is_stopped_from_outside_is_not_the_files_fault(processes, tmp_path):
    assert misbehave(str(tmp_path / "marker"), "stop once") > 0


def test_a_process_that_was_killed_while_it_waited_is_not_the_next_files_fault(processes):
    waiting = misbehave("a.mp4", "")
    os.kill(waiting, signal.SIGKILL)
    os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
    assert misbehave("b.mp4", "") != waiting


def test_threads_share_the_processes(processes):
    found = list(in_threads(lambda name: misbehave(name, ""), map(str, range(20)), n_threads=6))
    assert 1 <= len(set(found)) <= 2
    assert os.getpid() not in found
