"""Errors of the facts of a voice in other sound, and of the pitch of single frames.

    python benchmarks/voice.py                            # the demo's voices, whose pitch and rate are known
    python benchmarks/voice.py speech/ music=film.mp4     # your own speech; the reference is the clean recording
    python benchmarks/voice.py speech/ reference=praat    # pip install praat-parselmouth; or reference=pyin: librosa

White and pink noise and music are added at 20, 10, 5 and 0 dB below the speech. For frames: gross errors (over 20 %),
those of them that are octave errors (within 10 % of half or twice the pitch), other jumps, missed and invented voicing,
and the median of the remaining errors. For facts: how many are reported, and their errors.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from affectgpt.annotate.sound import measure_sound, prosody
from affectgpt.demo.performance import Identity, Performance, Voice, syllables
from affectgpt.demo.voice import render_voice
from affectgpt.media import Waveform, read_audio
from affectgpt.media.pitch import STEP_S, track_pitch
from affectgpt.media.speech import RATE_HZ, Speech, find_speech

LINE = "I can not believe that you really told him about it yesterday evening"
SNRS_DB = (20, 10, 5, 0)
FACTS = {"pitch_hz": "semitones", "pitch_range_st": "semitones", "syllable_rate_hz": "%", "loudness_range_db": "dB"}
LONGEST_S = 8.0


def waveform(samples: np.ndarray) -> Waveform:
    return Waveform(samples.astype(np.float32), RATE_HZ, len(samples) / RATE_HZ, RATE_HZ, 1)


def demo_voices(n: int = 12) -> dict[str, tuple[np.ndarray, float]]:
    """Voices of the demo's generator with their true pitch."""
    found = {}
    for seed in range(n):
        one = Performance(3.0, Identity(seed), voice=Voice(breathiness=0.1 + 0.04 * seed), text=LINE)
        assert syllables(one)
        found[f"demo{seed}"] = (render_voice(one), one.identity.base_pitch_hz)
    return found


def recordings(folder: Path) -> dict[str, tuple[np.ndarray, None]]:
    found: dict[str, tuple[np.ndarray, None]] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        samples = read_audio(path, RATE_HZ).samples
        for number, start in enumerate(range(0, len(samples), round(LONGEST_S * RATE_HZ))):
            part = samples[start : start + round(LONGEST_S * RATE_HZ)]
            if find_speech(waveform(part)).speech_s >= 0.3:
                found[f"{path.stem}-{number}"] = (part, None)
    return found


def others(music: np.ndarray | None) -> dict:
    rng = np.random.default_rng(0)

    def pink(n: int) -> np.ndarray:
        spectrum = np.fft.rfft(rng.standard_normal(n))
        return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)).clip(1)), n)

    def chords(n: int) -> np.ndarray:
        times = np.arange(RATE_HZ // 2) / RATE_HZ
        notes = [
            sum(np.sin(2 * np.pi * k * hz * times) / k for hz in chord for k in (1, 2, 3)) * np.exp(-2 * times)
            for chord in ((220, 277, 330), (247, 311, 370), (196, 247, 294), (175, 220, 262))
        ]
        return np.resize(np.concatenate(notes), n)

    return {
        "white": rng.standard_normal,
        "pink": pink,
        "music": chords if music is None else lambda n: np.resize(music[rng.integers(len(music) // 2) :], n),
    }


def reference_pitch(samples: np.ndarray, name: str, true_hz: float | None) -> np.ndarray:
    """Pitch of the clean recording every `STEP_S`: of Praat or librosa's pyin, the known one, or our own."""
    own = track_pitch(samples, RATE_HZ)
    if true_hz is not None:
        return np.where(np.isnan(own.hz), np.nan, true_hz)
    if name == "praat":
        import parselmouth

        pitch = parselmouth.Sound(samples.astype(np.float64), RATE_HZ).to_pitch_ac(
            time_step=STEP_S, pitch_floor=60, pitch_ceiling=500
        )
        times, hz = pitch.xs(), pitch.selected_array["frequency"]
    elif name == "pyin":
        import librosa

        hz, _, _ = librosa.pyin(samples, fmin=60, fmax=500, sr=RATE_HZ, hop_length=round(STEP_S * RATE_HZ))
        times, hz = np.arange(len(hz)) * STEP_S, np.nan_to_num(hz)
    else:
        return own.hz
    nearest = np.abs(times[:, None] - own.times_s).argmin(axis=0)
    return np.where(hz[nearest] > 0, hz[nearest], np.nan)


def frame_errors(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(gross, octave, both voiced, reference voiced, invented, unvoiced, sum of |cents| of the rest, their number)"""
    both = ~np.isnan(found) & ~np.isnan(reference)
    ratio = np.log2(found[both] / reference[both])
    gross = np.abs(2**ratio - 1) > 0.2
    octave = gross & (np.abs(np.abs(ratio) - 1) < np.log2(1.1))
    voiced = ~np.isnan(reference)
    invented = (~np.isnan(found) & ~voiced).sum()
    fine = 1200 * np.abs(ratio[~gross])
    return np.array(
        [
            gross.sum(),
            octave.sum(),
            both.sum(),
            voiced.sum(),
            invented,
            (~voiced).sum(),
            np.median(fine) if len(fine) else np.nan,
        ]
    )


def difference(name: str, value: float, clean: float) -> float:
    if name == "pitch_hz":
        return abs(12 * np.log2(value / clean))
    return abs(100 * (value / clean - 1)) if name == "syllable_rate_hz" else abs(value - clean)


def main(arguments: list[str]) -> None:
    options = dict(item.split("=", 1) for item in arguments if "=" in item)
    folders = [item for item in arguments if "=" not in item]
    known = options.keys() <= {"music", "reference"} and options.get("reference", "own") in ("own", "praat", "pyin")
    if not known or len(folders) > 1 or any(item.startswith("-") for item in folders):
        sys.exit(__doc__)
    music = read_audio(options["music"], RATE_HZ).samples if "music" in options else None
    voices = recordings(Path(folders[0])) if folders else demo_voices()
    frames: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    facts: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    asked: dict[tuple[str, str, int], int] = defaultdict(int)
    heard: dict[tuple[str, int], int] = defaultdict(int)
    for clean, true_hz in voices.values():
        speech = find_speech(waveform(clean))
        reference = reference_pitch(clean, options.get("reference", "own"), true_hz)
        before = {fact.name: fact.value for fact in measure_sound(waveform(clean), speech)[0]}
        inside = speech.at((np.arange(len(reference)) + 0.5) * STEP_S)
        power = np.mean(clean[np.repeat(inside, round(STEP_S * RATE_HZ))[: len(clean)].nonzero()[0]] ** 2)
        cases = [("none", 99, clean)]
        for kind, make in others(music).items():
            other = make(len(clean))
            other = other / np.sqrt(np.mean(other**2)) * np.sqrt(power)
            cases += [(kind, snr_db, clean + other * 10 ** (-snr_db / 20)) for snr_db in SNRS_DB]
        for kind, snr_db, samples in cases:
            sound = waveform(samples)
            # Frames are judged in the speech of the clean recording, so that the detector's errors do not count here.
            given = Speech(speech.segments_s, speech.duration_s, "of the clean recording")
            frames[kind, snr_db].append(
                frame_errors(prosody(sound, given).pitch_hz, np.where(inside, reference, np.nan))
            )
            found = find_speech(sound)
            heard[kind, snr_db] += bool(found.segments_s)
            after = {fact.name: fact.value for fact in measure_sound(sound, found)[0]}
            for name in FACTS:
                asked[name, kind, snr_db] += name in before
                if name in before and name in after:
                    facts[name, kind, snr_db].append(difference(name, after[name], before[name]))
    print(f"{len(voices)} voices; speech found in the clean ones of all\n")
    print("| other sound | dB | speech found | gross errors | octave errors | missed | invented | median error |")
    print("|---|---|---|---|---|---|---|---|")
    for (kind, snr_db), rows in frames.items():
        table = np.array(rows)
        gross, octave, both, voiced, invented, unvoiced, _ = np.nansum(table, axis=0)
        print(
            f"| {kind} | {snr_db} | {heard[kind, snr_db]}/{len(voices)} | {gross / both:.1%} | "
            f"{octave / both:.1%} | {1 - both / voiced:.1%} | {invented / max(unvoiced, 1):.1%} | "
            f"{np.nanmedian(table[:, 6]):.0f} cents |"
        )
    print("\n| fact | other sound | " + " | ".join(f"{snr_db} dB" for snr_db in SNRS_DB) + " |")
    print("|---|---|" + "---|" * len(SNRS_DB))
    for name, unit in FACTS.items():
        for kind in ("white", "pink", "music"):
            cells = []
            for snr_db in SNRS_DB:
                errors = facts[name, kind, snr_db]
                count = f"{len(errors)} of {asked[name, kind, snr_db]}"
                error = f": {np.median(errors):.2f}, at most {max(errors):.2f} {unit}" if errors else ""
                cells.append(f"{count}{error}")
            print(f"| {name} | {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
