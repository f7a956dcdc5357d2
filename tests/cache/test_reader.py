import gc
import shutil

import numpy as np
import pytest
import torch

from affectgpt.cache.reader import ClipReader, FeatureCache
from affectgpt.config import SamplingConfig
from affectgpt.data.clips import load_clip
from affectgpt.data.sources import probe_sample
from affectgpt.media import DamagedMedia
from affectgpt.schema import Sample
from tests.data.conftest import write_clip

MODALITIES = ("audio", "frames", "motion")
SAMPLING = SamplingConfig(n_frames=4, n_motion_frames=6)


class Encoder:
    """Replaces the frozen encoders: a fixed function of the decoded arrays that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, media):
        self.calls += 1
        arrays = {name: value.samples if name == "audio" else value for name, value in media.items()}
        return {name: torch.from_numpy(np.resize(value.astype(np.float32), (3, 5))) for name, value in arrays.items()}


def reader(folder, encoder, fingerprints=None):
    cache = FeatureCache(folder, fingerprints or dict.fromkeys(MODALITIES, "weights-1"))
    return ClipReader(SAMPLING, cache=cache, encode=encoder)


@pytest.fixture
def sample(clip):
    return probe_sample(Sample(id="a", video=str(clip)))


def test_cached_states_are_the_online_states_bit_for_bit(tmp_path, sample):
    online = Encoder()(load_clip(sample, MODALITIES, SAMPLING).arrays)
    encoder = Encoder()
    for _ in range(2):
        cached = reader(tmp_path / "cache", encoder)(sample, MODALITIES)
        assert all(torch.equal(cached.media[name], online[name]) for name in MODALITIES)
    assert encoder.calls == 1


def test_facts_are_the_same_cached_and_online(tmp_path, sample):
    facts = ClipReader(SAMPLING)(sample, MODALITIES).facts
    cached = reader(tmp_path / "cache", Encoder())
    assert cached(sample, MODALITIES).facts == facts == cached(sample, MODALITIES).facts
    assert facts["frames"]["times_s"] == [0.0, 0.2, 0.5, 0.7]
    assert facts["audio"]["heard_s"] == facts["audio"]["duration_s"]


def test_another_encoder_finds_no_states_of_the_first(tmp_path, sample):
    encoder = Encoder()
    reader(tmp_path / "cache", encoder)(sample, ("frames",))
    reader(tmp_path / "cache", encoder, {"frames": "weights-2"})(sample, ("frames",))
    assert encoder.calls == 2


def test_a_copy_under_another_name_is_found_and_a_changed_file_is_not(tmp_path, sample):
    encoder = Encoder()
    read = reader(tmp_path / "cache", encoder)
    read(sample, ("frames",))
    copy = tmp_path / "copy.mp4"
    shutil.copy(sample.video, copy)
    read(probe_sample(Sample(id="b", video=str(copy))), ("frames",))
    assert encoder.calls == 1
    write_clip(copy, seed=5)
    read(probe_sample(Sample(id="b", video=str(copy))), ("frames",))
    assert encoder.calls == 2


def test_a_damaged_entry_is_recomputed_with_a_warning(tmp_path, sample, caplog):
    encoder = Encoder()
    read = reader(tmp_path / "cache", encoder)
    before = read(sample, ("frames",)).media["frames"].clone()  # the tensor itself is memory-mapped
    (shard,) = (tmp_path / "cache").rglob("*.states")
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    again = reader(tmp_path / "cache", encoder)  # a reader checks an entry only once
    assert torch.equal(again(sample, ("frames",)).media["frames"], before)
    assert "damaged" in caplog.text
    assert encoder.calls == 2


def test_prepare_fills_the_cache_once_and_finds_clips_that_cannot_be_decoded(tmp_path, clip, sample):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-400])
    encoder = Encoder()
    read = reader(tmp_path / "cache", encoder)
    bad_sample = Sample(id="cut", video=str(cut), modalities=("frames",))
    for _ in range(2):
        prepared = read.prepare([sample, bad_sample], MODALITIES, on_bad="skip")
        assert [item.id for item in prepared.good] == ["a"]
        assert [item.id for item in prepared.bad] == ["cut"]
        assert prepared.n_uncached == 0
    assert encoder.calls == 1
    with pytest.raises(ValueError, match="sample 'cut'"):
        read.prepare([bad_sample], MODALITIES, on_bad="raise")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_clip_whose_states_are_not_finite_is_a_bad_sample_and_nothing_of_it_is_stored(tmp_path, sample, value):
    loud = write_clip(tmp_path / "loud.mp4", seed=5)
    other = probe_sample(Sample(id="loud", video=str(loud)))
    unwanted = load_clip(other, ("audio",), SAMPLING).arrays["audio"].samples

    def encode(media):
        states = Encoder()(media)
        if np.array_equal(media["audio"].samples, unwanted):
            states["audio"][1, 2] = value
        return states

    read = reader(tmp_path / "cache", encode)
    for _ in range(2):
        prepared = read.prepare([sample, other], MODALITIES, on_bad="skip")
        assert [item.id for item in prepared.good] == ["a"]
        (bad,) = prepared.bad
        assert (bad.id, bad.where) == ("loud", str(loud))
        assert f"{loud}: the encoder of audio gives NaN or infinity" in bad.reason
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.index")) == 72 * len(MODALITIES)
    with pytest.raises(DamagedMedia):
        read(other, MODALITIES)


def test_garbage_is_collected_while_clips_are_encoded(tmp_path, sample):
    collecting = []

    class Watching(Encoder):
        def __call__(self, media):
            collecting.append(gc.isenabled())
            return super().__call__(media)

    reader(tmp_path, Watching()).prepare([sample], MODALITIES, on_bad="raise", progress=False)
    assert collecting == [True]


def test_without_a_cache_skip_decodes_everything_before_training(tmp_path, clip, sample):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-400])
    bad_sample = Sample(id="cut", video=str(cut), modalities=("frames",))
    prepared = ClipReader(SAMPLING).prepare([sample, bad_sample], MODALITIES, on_bad="skip")
    assert ([item.id for item in prepared.good], [item.id for item in prepared.bad]) == (["a"], ["cut"])


@pytest.mark.parametrize("bug", [ValueError("too many values to unpack"), TypeError("unhashable")])
def test_a_bug_while_encoding_is_not_a_bad_sample(tmp_path, sample, bug):
    def encode(media):
        raise bug

    with pytest.raises(type(bug)) as caught:
        reader(tmp_path / "cache", encode).prepare([sample], MODALITIES, on_bad="skip")
    assert caught.value is bug
    assert caught.traceback[-1].name == "encode"
