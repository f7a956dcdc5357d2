"""What is decoded of a clip: its pictures once and its sound once, whatever the pipeline shows of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from affectgpt.annotate.annotators import Local
from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.face import Shown, evenly
from affectgpt.config import FacesConfig
from affectgpt.demo.face import render_face
from affectgpt.demo.performance import Identity, Performance, Voice
from affectgpt.demo.video import write_mp4
from affectgpt.demo.voice import render_voice
from affectgpt.media import ahead, audio, video
from affectgpt.media.faces import follow
from affectgpt.schema import Sample, write_jsonl
from tests.annotate.conftest import LINE, annotate, rows_of, served
from tests.chat import tiny_chat
from tests.chat.chat_server import ChatServer, fill_in

PIPELINES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "pipeline").glob("*.yaml"))
RATE_HZ = 12.5


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """A drawn face that begins to smile after 0.4 s, and a picture without a face, both with a voice."""
    folder = tmp_path_factory.mktemp("spoken")
    smile = {"AU12": ((0.4, 0.0), (0.6, 1.0)), "AU06": ((0.4, 0.0), (0.6, 1.0))}
    act = Performance(1.2, Identity(3), voice=Voice(), text=LINE, action_units=smile)
    frames, voice = render_face(act, size_px=112, rate_hz=RATE_HZ), render_voice(act).astype(np.float32)
    write_mp4(folder / "smile.mp4", frames, rate_hz=RATE_HZ, waveform=voice)
    write_mp4(folder / "sky.mp4", np.full_like(frames, (90, 140, 220)), rate_hz=RATE_HZ, waveform=voice)
    names = ("smile", "sky")
    write_jsonl(folder / "clips.jsonl", [Sample(name, video=f"{name}.mp4", subtitle="You told him.") for name in names])
    return folder / "clips.jsonl"


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """Passes of a decoder over a stream, by (name of the file, kind of the stream)."""
    passes: Counter = Counter()

    def counting(decode):
        def counted(container, stream, path):
            passes[Path(path).stem, stream.type] += 1
            return decode(container, stream, path)

        return counted

    for module in (video, audio):
        monkeypatch.setattr(module, "decode", counting(module.decode))
    return passes


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pictures_and_sound_of_a_clip_are_decoded_once(pipeline, spoken, tmp_path, decoded):
    (tmp_path / "reviewed.jsonl").touch()
    with ChatServer(fill_in) as server:
        checked = f"checked='{tmp_path / 'reviewed.jsonl'}'"
        annotate(spoken, tmp_path / "out", *served(server.url), f"pipeline={pipeline}", checked)
        shown = sum("image_url" in json.dumps(body) for body in server.requests)
    assert shown == {"merr": 1, "emer_checked": 0}.get(pipeline, 2)  # of merr, sky is dropped
    assert decoded == {(name, kind): 1 for name in ("smile", "sky") for kind in ("video", "audio")}


@pytest.mark.parametrize("pipeline", ["emer_coarse", "s0"])
def test_pictures_are_decoded_once_if_no_face_is_looked_for(pipeline, spoken, tmp_path, decoded):
    with ChatServer(fill_in) as server:
        annotate(spoken, tmp_path / "out", *served(server.url), f"pipeline={pipeline}", "faces.detector=none")
    assert len(list(records_in(tmp_path / "out"))) == 2
    assert set(decoded.values()) == {1}


MEASURED = "pipeline.steps=[{name: measure}]"


def test_the_sound_that_tells_whose_face_it_is_is_decoded_once(spoken, tmp_path, decoded):
    annotate(spoken, tmp_path / "out", MEASURED, "faces.person=speaker")
    assert decoded == {(name, kind): 1 for name in ("smile", "sky") for kind in ("video", "audio")}


def test_the_pass_for_the_medians_of_speakers_serves_the_annotation_and_later_runs(spoken, tmp_path, decoded):
    more = (MEASURED, "speaker='^(s)'", "faces.detector=none")
    annotate(spoken, tmp_path / "out", *more)
    assert decoded == {("smile", "audio"): 1, ("sky", "audio"): 1}
    annotate(spoken, tmp_path / "out", *more)
    assert decoded == {("smile", "audio"): 1, ("sky", "audio"): 1}


def test_sounds_that_do_not_fit_into_memory_are_decoded_again(spoken, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(ahead, "READ_AHEAD_BYTES", 100_000)  # one of two: 1.2 s at 16 kHz have 77 kB
    annotate(spoken, tmp_path / "out", MEASURED, "speaker='^(s)'", "faces.detector=none")
    assert sorted(decoded[name, "audio"] for name in ("smile", "sky")) == [1, 2]


class OfOtherRate(Local):
    """A model in this process that takes sound at 24 kHz."""

    asks_model, in_process, name = True, True, "other-rate"
    rate_hz, max_sound_s = 24000, None

    async def answer(self, question):
        sound = question.request(self).sound
        assert (sound.rate_hz, len(sound.samples)) == (24000, pytest.approx(1.2 * 24000, abs=2000))
        text = '{"clue": "The voice is low.", "evidence": []}'
        return {"text": text, "tokens_in": 1, "tokens_out": 1, "seconds": 0.0}, True


def test_a_model_in_this_process_gets_the_same_sound_at_its_own_rate(spoken, tmp_path, decoded):
    steps = "pipeline.steps=[{name: measure}, {name: acoustic, annotator: audio, needs: [measure]}]"
    asked = f"annotator.kind='{__name__}:OfOtherRate'"
    assert annotate(spoken, tmp_path / "out", steps, asked, "faces.detector=none") == 0
    assert decoded == {(name, "audio"): 1 for name in ("smile", "sky")}


def clip_of(manifest: Path, **more) -> ClipMedia:
    sample = Sample("smile", video=str(manifest.parent / "smile.mp4"), modalities=("frames",))
    return ClipMedia(sample, "f" * 64, faces=FacesConfig(), **more)


def test_kept_pictures_are_those_of_the_video_at_the_times_that_are_asked(spoken, decoded):
    every = video.read_frames(spoken.parent / "smile.mp4", 15)
    clip = clip_of(spoken, shown=Shown(of_face=True, counts=(2,)))
    tracks = clip.tracks()
    decoded.clear()
    for frames, times_s in (
        (clip.frames(2), evenly(tracks, 2)),
        (clip.frames(3, (at_s := list(clip.shown(tracks))[2:5])), at_s),
    ):
        assert frames.times_s == pytest.approx(times_s, abs=0.5 / RATE_HZ + 1e-3)
        assert np.array_equal(frames.images, every.images[frames.indices])
        assert frames.n_source_frames == 15
    assert not decoded
    assert len(clip.frames(5).times_s) == 5  # a number that was not announced
    assert decoded["smile", "video"] == 1


def test_a_model_that_takes_one_number_of_pictures_gets_as_many_from_the_same_pass(spoken, tmp_path, decoded):
    model = tiny_chat.write_instructblip_video(tmp_path / "blip", n_positions=2048)  # takes 4
    steps = (
        "pipeline.steps=[{name: measure}, {name: visual, annotator: vision, needs: [measure]}, "
        "{name: peak, annotator: vision, needs: [measure]}, {name: explain, annotator: vision, needs: [measure]}]"
    )
    in_process = ("annotator=transformers", f"annotator.model='{model}'", "annotator.device=cpu")
    annotate(spoken, tmp_path / "out", *in_process, "annotator.structured=none", "annotator.max_tokens=2", steps)
    rows = rows_of(tmp_path / "out" / "store" / "answers.jsonl")
    shown = {(row["step"], row["media_sha256"]): row["request"]["media"][0] for row in rows}
    assert {item["n_frames"] for item in shown.values()} == {4}
    of_smile = {step: item["at_s"] for (step, _), item in shown.items() if "at_s" in item}
    start_s, *between, end_s = of_smile["visual"]
    assert len(between) == 2
    assert of_smile["peak"] == [of_smile["peak"][0]] * 4
    assert start_s < of_smile["peak"][0] < end_s
    assert of_smile["peak"][0] in between
    assert decoded == {(name, kind): 1 for name in ("smile", "sky") for kind in ("video", "audio")}


def test_of_more_pictures_than_fit_into_memory_every_second_or_fourth_is_kept(spoken, monkeypatch):
    monkeypatch.setattr(follow, "KEPT_BYTES", 5 * 112 * 112 * 3)
    clip = clip_of(spoken, shown=Shown(counts=(15,)))
    clip.tracks()
    assert sorted(set(clip.frames(15).indices.tolist())) == [0, 4, 8, 12]
