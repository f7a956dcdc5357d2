"""Face branches with nothing but videos: training, cache, inference, evaluation and serving take the same crops."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from affectgpt import config as conf
from affectgpt.cache.build import run_build
from affectgpt.cache.reader import ClipReader, FeatureCache
from affectgpt.cli import compose
from affectgpt.config import FacesConfig, SamplingConfig
from affectgpt.convert.conversion import convert
from affectgpt.data import sources
from affectgpt.data.clips import load_clip
from affectgpt.data.faces import FaceNeeds, face_needs, read_faces_of
from affectgpt.data.facts import FILE, MediaFacts
from affectgpt.data.sources import probe_sample, probe_samples
from affectgpt.demo.face import render_face
from affectgpt.demo.performance import Identity, Performance, Voice
from affectgpt.demo.video import write_mp4
from affectgpt.demo.voice import render_voice
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.inference.infer import run_inference
from affectgpt.inference.loading import load
from affectgpt.media import audio, read_audio, read_frames, video
from affectgpt.media.faces import read_faces
from affectgpt.models.conversation import ClipMedia
from affectgpt.runtime import InputError
from affectgpt.schema import Sample, write_jsonl
from affectgpt.serve.models import AffectGPT
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config
from tests.convert.test_presets import CLIP, HUBERT, V2_LAYERS
from tests.media.faces import empty, scene
from tests.media.media_files import sine, write_media
from tests.models import foreign, tiny

NEEDS = FaceNeeds(FacesConfig(), {"frames": 2})
SAMPLING = SamplingConfig(n_frames=2, n_faces=2, n_motion_faces=4)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Five films of 0.4 s with a tone; in `none.mp4` there is no face."""
    folder = tmp_path_factory.mktemp("films")
    sound = {"sound": sine(0.4, rate_hz=16000), "sound_rate_hz": 16000}
    for number in range(4):
        frames = [scene(20 + 30 * number + 3 * step) for step in range(10)]
        write_media(folder / f"face{number}.mp4", frames, **sound)
    write_media(folder / "none.mp4", [empty()] * 10, **sound)
    return folder


@pytest.fixture
def passes(monkeypatch) -> list[str]:
    """The names of the videos that are decoded, once for each pass."""
    decoded: list[str] = []
    original = video._decode_selected

    def decode(path, *rest):
        decoded.append(Path(path).name)
        return original(path, *rest)

    monkeypatch.setattr(video, "_decode_selected", decode)
    return decoded


@pytest.fixture
def heard(monkeypatch) -> list[str]:
    """The names of the files whose sound is decoded, once for each pass."""
    decoded: list[str] = []
    original = audio.decode

    def decode(container, stream, path):
        decoded.append(Path(path).name)
        return original(container, stream, path)

    monkeypatch.setattr(audio, "decode", decode)
    return decoded


def probed(path, **fields) -> tuple[Sample, MediaFacts]:
    facts = MediaFacts()
    return probe_sample(Sample(id="a", video=str(path), **fields), facts, NEEDS), facts


def test_a_face_is_a_modality_of_the_clip_and_no_face_is_none(films):
    assert probed(films / "face0.mp4")[0].modalities == ("audio", "frames", "motion", "face", "face_motion")
    assert probed(films / "none.mp4")[0].modalities == ("audio", "frames", "motion")
    unasked = probe_sample(Sample(id="a", video=str(films / "face0.mp4")))
    assert unasked.modalities == ("audio", "frames", "motion")


def test_probing_and_reading_a_clip_is_one_pass_over_the_video(films, passes):
    sample, facts = probed(films / "face0.mp4")
    clip = load_clip(sample, ("frames", "face", "face_motion"), SAMPLING, facts=facts)
    assert passes == ["face0.mp4"]
    assert clip.arrays["face"].shape == (2, 224, 224, 3)
    assert clip.arrays["face_motion"].shape == (4, 224, 224, 3)
    assert clip.facts["face"] == {"n_frames_with_face": 6, "detector": "blazeface"}


def test_crops_of_a_later_pass_are_those_of_the_first_bit_for_bit(films, passes):
    sample, facts = probed(films / "face0.mp4")
    names = ("frames", "face", "face_motion")
    first, later = (load_clip(sample, names, SAMPLING, facts=facts) for _ in range(2))
    alone = load_clip(sample, names, SAMPLING)  # without facts, the faces are looked for again
    assert len(passes) == 3  # the first reading has cost no pass of its own
    for name in names:
        np.testing.assert_array_equal(later.arrays[name], first.arrays[name])
        np.testing.assert_array_equal(alone.arrays[name], first.arrays[name])


def test_where_the_faces_are_is_stored_so_that_a_second_start_looks_for_none(films, tmp_path, passes):
    for _ in range(2):
        facts = MediaFacts(tmp_path / FILE)
        sample = probe_sample(Sample(id="a", video=str(films / "face0.mp4")), facts, NEEDS)
        facts.save()
        assert "face" in sample.modalities
    assert len(passes) == 1
    other = FaceNeeds(FacesConfig(rate_hz=5))
    probe_sample(Sample(id="a", video=str(films / "face0.mp4")), MediaFacts(tmp_path / FILE), other)
    assert len(passes) == 2


@pytest.mark.parametrize("person", ["speaker", "listener"])
def test_without_speech_there_is_no_speaker_and_so_no_face_which_is_said_and_stored(person, films, tmp_path, caplog):
    pytest.importorskip("silero_vad")
    caplog.set_level("INFO")
    needs = FaceNeeds(FacesConfig(person=person))
    why = f"no speech is heard, so the {person} cannot be told"
    names = ("face0", "none")  # their sound is a tone
    asked = [Sample(id=name, video=str(films / f"{name}.mp4")) for name in names]
    for _ in range(2):
        facts = MediaFacts(tmp_path / FILE)
        samples, _ = probe_samples(asked, facts=facts, faces=needs)
        assert [sample.modalities for sample in samples] == [("audio", "frames", "motion")] * 2
        for reason, name in ((why, "face0"), ("no face is seen", "none")):
            assert f"{reason} in 1 of 2 videos, for example ['{name}']" in caplog.text
        caplog.clear()
    with pytest.raises(InputError, match=rf"face0\.mp4: {why} \(faces\.person={person}\)"):
        load_clip(samples[0], ("face",), replace(SAMPLING, faces=needs.settings), facts=facts)


def test_a_sound_in_a_file_of_its_own_tells_the_speaker(films, talk, tmp_path):
    pytest.importorskip("silero_vad")
    silent = write_media(tmp_path / "silent.mp4", read_frames(talk, 15).images, rate_hz=12)
    facts, needs = MediaFacts(tmp_path / FILE), FaceNeeds(FacesConfig(person="speaker"))
    for sound, has_face in ((str(talk), True), (str(films / "face0.mp4"), False)):
        sample = probe_sample(Sample(id="a", video=str(silent), audio=sound), facts, needs)
        assert ("face" in sample.modalities) is has_face
    reader = ClipReader(replace(SAMPLING, faces=needs.settings), facts=facts)
    samples = [Sample(id="a", video=str(silent), audio=sound) for sound in (str(talk), str(films / "face0.mp4"), None)]
    assert len({reader._sha256(sample, "face") for sample in samples}) == 3


def test_a_face_that_the_sound_of_another_file_tells_is_looked_for_once_over_all_starts(films, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "affectgpt.data.facts.read_faces_of", lambda path, *_: read_faces_of(path, FaceNeeds(FacesConfig()))
    )
    asked, original = [], sources.check_each
    monkeypatch.setattr(
        sources, "check_each", lambda *args, what, **more: asked.append(what) or original(*args, what=what, **more)
    )
    sound = shutil.copy(films / "face1.mp4", tmp_path / "sound.mp4")
    rows = [Sample("a", video=str(films / "face0.mp4"), audio=str(sound), person="speaker")]
    for _ in range(2):
        probe_samples(rows, facts=MediaFacts(tmp_path / FILE), faces=NEEDS)
    assert asked == ["looking for faces", "probing media", "probing media"]
    sound.unlink()
    _, bad = probe_samples(rows, facts=MediaFacts(tmp_path / FILE), faces=NEEDS, on_bad="skip")
    assert "sound.mp4: no such file" in bad[0].reason


def test_what_is_forgotten_of_a_video_includes_its_pictures_in_memory(films):
    facts, film = MediaFacts(), str(films / "face0.mp4")
    for is_forgotten in (False, True):
        facts.faces_in(film, NEEDS, read_ahead=True)
        if is_forgotten:
            facts.forget(film)
        assert (facts.read_ahead(film, NEEDS) is None) is is_forgotten
        facts.forget(film)


def test_a_video_that_another_thread_forgets_is_looked_at_again(films):
    facts, film = MediaFacts(), str(films / "none.mp4")
    probe_sample(Sample(id="a", video=film), facts, NEEDS)
    facts.forget(film)
    assert facts.why_no_face(film, NEEDS) == "no face is seen"


def test_a_question_about_a_video_that_is_forgotten_meanwhile_is_answered(films):
    class Forgetting(dict):
        def get(self, path):
            return self.pop(path, None)

    facts, film = MediaFacts(), str(films / "none.mp4")
    facts.info(film)
    facts._known = Forgetting(facts._known)
    assert facts.read_ahead(film, NEEDS) is None


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    """A drawn face that speaks for 1.2 s."""
    act = Performance(1.2, Identity(3), voice=Voice(), text="I can not believe that you really told him")
    frames, voice = render_face(act, size_px=112, rate_hz=12.5), render_voice(act).astype(np.float32)
    path = tmp_path_factory.mktemp("talk") / "talk.mp4"
    write_mp4(path, frames, rate_hz=12.5, waveform=voice)
    return path


@pytest.mark.parametrize("rate_hz", [16000, 24000])
def test_the_sound_that_tells_the_speaker_is_the_one_that_the_model_hears(rate_hz, talk, heard, passes):
    pytest.importorskip("silero_vad")
    sampling = replace(SAMPLING, rate_hz=rate_hz, faces=FacesConfig(person="speaker"))
    needs = face_needs(("audio", "frames", "face"), sampling)
    facts = MediaFacts()
    sample = probe_sample(Sample(id="a", video=str(talk)), facts, needs)
    assert "face" in sample.modalities
    clip = load_clip(sample, ("audio", "frames", "face"), sampling, facts=facts)
    assert (heard, passes) == (["talk.mp4"], ["talk.mp4"])
    np.testing.assert_array_equal(clip.arrays["audio"].samples, read_audio(talk, rate_hz).samples)
    heard.clear()
    load_clip(sample, ("audio", "frames", "face"), sampling, facts=facts)  # where the crops are is known
    assert heard == ["talk.mp4"]
    listener = replace(needs, settings=FacesConfig(person="listener"))
    alone = probe_sample(Sample(id="a", video=str(talk)), facts, listener)
    assert alone.modalities == ("audio", "frames", "motion")
    heard.clear()
    load_clip(alone, ("audio",), replace(sampling, faces=listener.settings), facts=facts)
    assert heard == []


def test_the_face_is_that_of_the_sample_unless_a_setting_names_another(films, monkeypatch):
    asked = []

    def read(path, needs, sound):
        asked.append(needs.settings.person)
        return read_faces_of(path, FaceNeeds(FacesConfig()))

    monkeypatch.setattr("affectgpt.data.facts.read_faces_of", read)
    facts = MediaFacts()
    for person in (None, "speaker", "listener"):
        sample = probe_sample(Sample(id="a", video=str(films / "face0.mp4"), person=person), facts, NEEDS)
        assert load_clip(sample, ("face",), SAMPLING, facts=facts).arrays["face"].shape[0] == 2
    assert asked == ["main", "speaker", "listener"]  # each is a fact of its own, looked for once
    assert FaceNeeds(FacesConfig(person="largest")).of("listener").settings.person == "largest"
    reader = ClipReader(SAMPLING)
    keys = {reader._sha256(replace(sample, person=person), "face") for person in (None, "speaker", "listener")}
    assert len(keys) == 3


def test_a_manifest_can_ask_for_no_faces_and_a_clip_without_the_listed_one_is_bad(films, passes):
    assert probed(films / "face0.mp4", modalities=("audio", "frames"))[0].modalities == ("audio", "frames")
    assert passes == []
    with pytest.raises(InputError, match=r"lists \['face'\], but the media hold only \[.*\] \(no face is seen\)"):
        probed(films / "none.mp4", modalities=("audio", "face"))


def test_saved_crops_win(films, tmp_path, passes):
    crops = np.random.default_rng(0).integers(0, 256, (5, 30, 30, 3), dtype=np.uint8)
    np.save(tmp_path / "f.npy", crops)
    sample, facts = probed(films / "face0.mp4", face=str(tmp_path / "f.npy"))
    read = load_clip(sample, ("face",), SAMPLING, facts=facts).arrays["face"]
    np.testing.assert_array_equal(read, read_faces(tmp_path / "f.npy", 2))
    assert passes == []


def test_the_cache_keeps_states_of_crops_apart_by_how_they_were_made(films, tmp_path):
    encoded = []

    def encode(media):
        encoded.append(sorted(media))
        return {name: torch.from_numpy(value.mean(axis=(1, 2)).astype(np.float32)) for name, value in media.items()}

    def read(sampling, **fields):
        cache = FeatureCache(tmp_path / "cache", dict.fromkeys(("frames", "face"), "weights"))
        sample = probed(films / "face0.mp4", **fields)[0]
        return ClipReader(sampling, cache=cache, encode=encode)(sample, ("frames", "face"))

    first, again = read(SAMPLING), read(SAMPLING)
    assert torch.equal(torch.as_tensor(first.media["face"]), torch.as_tensor(again.media["face"]))
    assert encoded == [["face", "frames"]]
    read(replace(SAMPLING, faces=FacesConfig(size_px=112)))
    assert encoded[1:] == [["face"]]  # the frames are the same
    np.save(tmp_path / "f.npy", np.zeros((5, 30, 30, 3), np.uint8))
    read(SAMPLING, face=str(tmp_path / "f.npy"))
    assert encoded[2:] == [["face"]]


def test_the_interface_of_transformers_decodes_the_sound_that_tells_the_speaker_once(talk, heard, passes):
    pytest.importorskip("silero_vad")
    branches = {
        "audio": {"rate_hz": 24000},
        "frames": {"n_frames": 2},
        "face": {"n_frames": 2, "faces": {"person": "speaker"}},
    }
    media = ClipMedia(str(talk), None, branches)
    assert media.modalities() == tuple(branches)
    assert media.read(tuple(branches))["audio"].rate_hz == 24000
    assert (heard, passes) == (["talk.mp4"], ["talk.mp4"])


# ---- published presets -----------------------------------------------------------------------------------------------


def published(folder: Path, preset: str) -> list[str]:
    """Arguments of infer.py that select a preset over tiny base models, with converted weights in the true layout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "SEEN_WIDTH", CLIP)
        patch.setattr(foreign, "HEARD_WIDTH", HUBERT)
        n_layers, _, infix = foreign.lora.__defaults__
        patch.setattr(foreign.lora, "__defaults__", (n_layers, 16 if preset == "affectgpt_v2" else 64, infix))
        bases = {"audio": tiny.write_hubert(folder / "hubert", n_layers=4)}
        if preset == "affectgpt_v2":
            files = [foreign.save(foreign.affectgpt_2025(targets=V2_LAYERS), folder / "run.pth")]
            clip = tiny.write_clip(folder / "clip")
            bases |= {"llm": tiny.write_qwen2(folder / "llm"), "face": clip, "frames": clip}
        else:
            eva = foreign.save(foreign.eva(), folder / "eva.pth", key=None)
            files = [foreign.save(foreign.emotion_llama(), folder / "run.pth"), eva]
            bases |= {"llm": tiny.write_llama(folder / "llm"), "frames": folder / "base" / "eva"}
            bases |= {"face": tiny.write_vit_mae(folder / "mae"), "face_motion": tiny.write_videomae(folder / "vmae")}
        assert convert(files, folder / "base")["complete"]
    arguments = [f"model={preset}", f"checkpoint={folder / 'base'}", "device=cpu", "generate.max_new_tokens=3"]
    for name, path in bases.items():
        where = "model.llm" if name == "llm" else f"model.encoders.{name}"
        arguments += [f"{where}.path={path}", f"{where}.dtype=float32"]
    return [*arguments, *(["model.sampling.n_motion_faces=4"] if preset == "emotion_llama" else [])]


@pytest.mark.parametrize(
    ("preset", "with_face", "without"),
    [
        ("affectgpt_v2", ["audio", "face"], ["audio", "frames"]),
        ("emotion_llama", ["audio", "frames", "face", "face_motion"], ["audio", "frames"]),
    ],
)
def test_infer_answers_about_raw_videos_with_the_published_presets(
    preset, with_face, without, films, tmp_path, passes, heard, caplog
):
    arguments = [*published(tmp_path, preset), f"input=[{films / 'face0.mp4'},{films / 'none.mp4'}]", "task=labels"]
    caplog.set_level("INFO")
    assert run_inference(compose("infer", [*arguments, f"out={tmp_path / 'p.jsonl'}"])) == 0
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    assert rows["face0"]["modalities"] == with_face
    assert rows["none"]["modalities"] == without
    assert sorted(passes) == sorted(heard) == ["face0.mp4", "none.mp4"]
    assert "no face is seen in 1 of 2 videos, for example ['none']" in caplog.text


# ---- training, evaluation and serving --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    """(settings of a finished run with sound, frames and faces, its folder)"""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        Sample(id=path.stem, video=str(path), labels=("happy",), description="She smiles.", split="train")
        for path in sorted(films.glob("*.mp4"))
    ]
    write_jsonl(folder / "m.jsonl", rows)
    bases = tiny.write_base_models(folder / "bases", modalities=("audio", "frames", "motion", "face"))
    config = make_train_config(
        bases,
        folder / "m.jsonl",
        folder,
        epochs=1,
        iterations_per_epoch=2,
        n_validation=0,
        save_every=2,
        warmup_steps=1,
    )
    config.data.test, config.data.leak_check = [], "off"
    model = config.model
    del model.encoders["motion"], model.projectors["motion"]
    model.encoders["face"] = conf.EncoderConfig(path=str(bases["face"]))
    model.projectors["face"] = conf.ProjectorConfig(n_queries=3, hidden_size=16, n_layers=2, n_heads=2)
    model.sampling.n_faces = 2
    model.sampling.faces = FacesConfig(rate_hz=10)
    return config, run_stage(config).run


def test_training_takes_the_faces_of_videos_and_caches_them(run, films):
    config, _ = run
    folders = list((Path(config.paths.cache) / "features" / "face").iterdir())
    assert len(folders) == 1
    facts = MediaFacts(Path(config.paths.cache) / FILE)
    fact = FaceNeeds(config.model.sampling.faces).fact
    assert all(facts.lists(str(path), fact) for path in films.glob("*.mp4"))


@pytest.mark.parametrize("person", ["main", "speaker"])
def test_a_build_of_the_cache_decodes_pictures_and_sound_of_a_clip_once(person, run, talk, tmp_path, passes, heard):
    config, _ = run
    model = copy.deepcopy(config.model)
    model.sampling.faces.person = person
    write_jsonl(tmp_path / "m.jsonl", [Sample(id="talk", video=str(talk), labels=("sad",), description="She speaks.")])
    data = conf.DataConfig(coarse=[conf.SourceConfig(manifest=str(tmp_path / "m.jsonl"))])
    build = conf.CacheConfig(model, data, conf.PathsConfig(cache=str(tmp_path / "cache")), n_processes=1, device="cpu")
    assert run_build(build) == 0
    assert (passes, heard) == (["talk.mp4"], ["talk.mp4"])
    assert {path.name for path in (tmp_path / "cache" / "features").iterdir() if path.name != "claims"} == {
        *("audio", "frames", "face")
    }
    assert run_build(build) == 0
    assert (passes, heard) == (["talk.mp4"], ["talk.mp4"])


def test_evaluation_and_serving_use_the_crops_of_training(run, films, tmp_path, passes):
    config, folder = run
    references = str(Path(config.paths.cache).parent / "m.jsonl")
    settings = conf.EvalConfig(checkpoint=str(folder), references=references, task="labels", out=str(tmp_path))
    settings.generate, settings.paths = conf.GenerateConfig(max_new_tokens=3), config.paths
    settings.device, settings.n_bootstrap = "cpu", 2
    assert run_evaluation(settings) == 0
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())}
    assert rows["face0"]["modalities"] == ["audio", "frames", "face"]
    assert rows["none"]["modalities"] == ["audio", "frames"]
    assert passes == []  # the settings of the run are in its checkpoint, so everything is in the cache
    loaded = load(str(folder), folder.parent, device="cpu")
    served = AffectGPT(loaded, conf.ServeConfig(name="tiny"))
    assert served._faces.settings == config.model.sampling.faces
    for name, shown in (("face0", ("audio", "frames", "face")), ("none", ("audio", "frames"))):
        sample = probe_sample(Sample(id="request", video=str(films / f"{name}.mp4")), served._facts, served._faces)
        states = served._reader(sample, shown)
        assert set(states.media) == set(shown)
    assert passes == ["face0.mp4", "none.mp4"]
