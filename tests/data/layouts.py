"""Small data sets on disk in their published layouts, with the irregularities of the real ones."""

import csv
import json
from pathlib import Path

import numpy as np

from tests.data.conftest import write_clip

NAMES = ("samplenew_01", "samplenew_02", "samplenew_03")


def write_csv(path: Path, columns, *rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def media(folder: Path, names=NAMES, *, suffix=".mp4", faces=False, audio=False, real=False):
    """video/<name>.mp4, audio/<name>.wav, openface_face/<name>/<name>.npy; empty files unless `real`."""
    for number, name in enumerate(names):
        (folder / "video").mkdir(parents=True, exist_ok=True)
        path = folder / "video" / f"{name}{suffix}"
        if real:
            write_clip(path, seed=number)
        else:
            path.touch()
        if audio:
            (folder / "audio").mkdir(exist_ok=True)
            (folder / "audio" / f"{name}.wav").touch()
        if faces:
            (folder / "openface_face" / name).mkdir(parents=True)
            crops = np.zeros((4, 112, 112, 3), dtype=np.uint8)
            crops[..., 2] = 200  # red, in BGR order
            np.save(folder / "openface_face" / name / f"{name}.npy", crops)
    return folder


def subtitles(folder: Path):
    rows = (NAMES[0], "我很好。", "I'm fine."), (NAMES[1], "真的吗？", ""), (NAMES[2], "", "")
    write_csv(folder / "subtitle_chieng.csv", ("name", "chinese", "english"), *rows)


def emer_v1(folder: Path):
    media(folder, suffix=".avi")
    columns = ("names", "emotions", "subtitles", "reasons")
    rows = ((name, "['happy', 'calm']", "Hi, you.", 'He smiles, "a lot".') for name in NAMES)
    write_csv(folder / "gt-eng.csv", columns, *rows)
    write_csv(folder / "gt-chi.csv", columns, (NAMES[0], "['开心']", "你好。", "他在笑。"))


def emer_fine(folder: Path):
    media(folder)
    rows = ((name, f"他笑了 {name}", f"He smiles {name}.") for name in NAMES)
    write_csv(folder / "final-EMER-reason.csv", ("name", "chinese", "english"), *rows)
    rows = (NAMES[0], "[\"don't know\", 'sad']"), (NAMES[1], "[happy, calm]"), (NAMES[2], "")
    write_csv(folder / "check-openset.csv", ("name", "openset"), *rows)
    subtitles(folder)


def openset(folder: Path, kind: str):
    """Labels and descriptions in two files; the labels include an apostrophe, NaN and an empty list."""
    media(folder)
    rows = (NAMES[0], "[\"don't know\", 'sad']"), (NAMES[1], "nan"), (NAMES[2], "[]")
    write_csv(folder / f"track2_train_{kind}.csv", ("name", "openset"), *rows)
    rows = (NAMES[1], "Her voice\nshakes, and she looks away."), (NAMES[0], "She frowns.")
    write_csv(folder / f"track3_train_{kind}.csv", ("name", "reason"), *rows)
    subtitles(folder)


def onehot(folder: Path):
    media(folder)
    rows = zip(NAMES, ("neutral", "worried", "surprise"), strict=True)
    write_csv(folder / "track1_train.csv", ("name", "discrete"), *rows)


def preferences(folder: Path):
    media(folder)
    rows = (NAMES[0], "A.", "B.", "a1"), (NAMES[0], "A.", "C.", "tie"), (NAMES[1], "A.", "B.", "same")
    write_csv(folder / "track3_emoprefer.csv", ("name", "a1", "a2", "preference"), *rows)


def merr(folder: Path, level="fine"):
    media(folder)
    caption = "smp_reason_caption" if level == "fine" else "caption"
    entries = {
        name: {
            "AU_list": ["AU12", "AU25"],
            "visual_prior_list": ["Lip corner puller"],
            "audio_prior_list": "A low voice.",
            "peak_index": "23",
            "peak_AU_list": ["AU12: 2.50"],
            "pseu_emotion": "happy",
            "text": "I'm fine.",
            caption: f"The lip corners rise in {name}.",
        }
        for name in NAMES
    }
    (folder / f"MERR_{level}_grained.json").write_text(json.dumps(entries), encoding="utf-8")
    lines = f"{NAMES[0]} 75 happy 3.4\n{NAMES[1]} 60 sad -10\n{NAMES[2]} 12 doubt\n"
    (folder / f"MERR_{level}_grained.txt").write_text(lines, encoding="utf-8")
    rows = (NAMES[0], "Well, I'm fine."), (NAMES[1], "nan")
    write_csv(folder / "transcription_en_all.csv", ("name", "sentence"), *rows)


def merbench(folder: Path, *, numbered=False):
    media(folder)
    emotions = (0, 2, 1) if numbered else ("neutral", "happy", "sad")
    corpus = {name: {"emo": emo, "val": 0.5 * n} for n, (name, emo) in enumerate(zip(NAMES, emotions, strict=True))}
    np.savez(folder / "label.npz", test_corpus=np.array(corpus, dtype=object))


def llava(folder: Path):
    media(folder)
    talk = [
        {"from": "human", "value": "<video>\nHow does he feel?"},
        {"from": "gpt", "value": "He's glad."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "He smiles."},
    ]
    videos = [f"video/{name}.mp4" for name in NAMES]
    entries = [{"id": str(number), "video": video, "conversations": talk} for number, video in enumerate(videos)]
    (folder / "train.json").write_text(json.dumps(entries), encoding="utf-8")


def sharegpt(folder: Path):
    media(folder)
    talk = [{"role": "user", "content": "<video>Feelings?"}, {"role": "assistant", "content": "glad, calm"}]
    entries = [{"videos": [f"video/{name}.mp4"], "messages": talk} for name in NAMES]
    (folder / "share.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")


def candidates(folder: Path):
    media(folder)
    write_csv(folder / "track_all_candidates.csv", ("name",), *((name,) for name in NAMES))
    subtitles(folder)


def predictions(folder: Path):
    media(folder)
    np.savez(folder / "x-openset.npz", filenames=np.array(NAMES), fileitems=np.array(["[sad, tired]", "[happy]", ""]))
    reasons = dict.fromkeys(NAMES, "He is tired.")
    np.savez(folder / "reasons.npz", name2reason=np.array(reasons, dtype=object))


def ours(folder: Path):
    media(folder)
    rows = ({"id": name, "video": f"video/{name}.mp4", "labels": ["sad"]} for name in NAMES)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
