"""Check a data set: counts of its media, texts and labels, a list of problems, and plots."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.config import SamplingConfig
from affectgpt.data.clips import load_clip
from affectgpt.data.facts import MediaFacts
from affectgpt.data.pictures import draw_data
from affectgpt.data.sources import check_each, probe_samples
from affectgpt.media import MediaInfo, isolated_media
from affectgpt.runtime import write_json_atomic
from affectgpt.schema import BadSample, Sample, listed, write_jsonl

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_LETTER = re.compile(r"\w")
N_LISTED = 5
"""Rows of each kind of problem that the report lists; bad_samples.jsonl holds all."""


@dataclass(frozen=True)
class DataReport:
    """The result of checking a data set.

    Attributes:
        name: of the source.
        n_rows: number of rows, usable or not.
        bad: unusable rows and files, with reasons.
        samples: usable samples, with probed modalities.
        duration_s, size_px: of the clips whose headers state them; size as stored.
        duplicates: ids of files with the same bytes.
        wrong_language: ids whose description is mostly not in its stated language.
    """

    name: str
    n_rows: int
    bad: Sequence[BadSample]
    samples: Sequence[Sample]
    duration_s: Sequence[float] = ()
    size_px: Counter[tuple[int, int]] = field(default_factory=Counter)
    duplicates: Sequence[tuple[str, ...]] = ()
    wrong_language: Sequence[str] = ()

    def labels(self) -> Counter[str]:
        """The frequencies of the open-vocabulary labels."""
        return Counter(word for sample in self.samples for word in sample.labels or ())

    def labels_per_clip(self) -> Counter[int]:
        return Counter(len(sample.labels or ()) for sample in self.samples)

    def fixed_labels(self) -> Counter[str]:
        return Counter(sample.label for sample in self.samples if sample.label)

    def modalities(self) -> Counter[str]:
        return Counter(name for sample in self.samples for name in sample.modalities or ())

    def texts(self) -> Counter[str]:
        """The number of samples that have each text, by language."""
        found: Counter[str] = Counter()
        for sample in self.samples:
            for lang in sorted({sample.lang, *sample.translations}):
                texts = sample.in_language(lang)
                names = ("subtitle", "description", "labels", "label")
                found.update(f"{name} ({lang})" for name in names if getattr(texts, name))
        return found

    def table(self) -> str:
        """The report as text."""
        n, has = len(self.samples), self.modalities()
        silent = sum("audio" not in (sample.modalities or ()) for sample in self.samples if sample.video)
        lines = [self.name, f"  rows {self.n_rows}, usable {n}, bad {len(self.bad)}"]
        lines.append(f"  media: {', '.join(f'{name} {count}' for name, count in has.items()) or 'none'}")
        if silent:
            lines.append(f"  clips without audio: {silent} of {n}")
        if self.duration_s:
            low, middle, high = min(self.duration_s), statistics.median(self.duration_s), max(self.duration_s)
            total_h = sum(self.duration_s) / 3600
            lines.append(f"  duration: {low:.2f} to {high:.2f} s, median {middle:.2f} s, {total_h:.2f} h in total")
        if self.size_px:
            sizes = [f"{width} x {height} ({count})" for (width, height), count in self.size_px.most_common(4)]
            lines.append(f"  size: {', '.join(sizes)}{_more(self.size_px, 4)}")
        lines.append(f"  texts: {', '.join(f'{name} {count}' for name, count in self.texts().items()) or 'none'}")
        if labels := self.labels():
            per_clip = statistics.mean(len(sample.labels) for sample in self.samples if sample.labels)
            lines.append(f"  labels: {labels.total()}, {len(labels)} distinct, {per_clip:.2f} per labelled clip")
            lines.append(f"    {_top(labels, 10)}")
        if fixed := self.fixed_labels():
            lines.append(f"  fixed labels: {_top(fixed, 12)}")
        if splits := Counter(sample.split for sample in self.samples if sample.split):
            lines.append(f"  splits: {_top(splits, 8)}")
        lines += [f"  problem: {text}" for text in self.problems()]
        return "\n".join(lines)

    def problems(self) -> list[str]:
        """One text per kind of problem, with the first of each. Clips without audio or labels are not problems."""
        kinds: dict[str, list[BadSample]] = {}
        for row in self.bad:
            kinds.setdefault(_kind(row.reason), []).append(row)
        found = [
            f"{len(rows)} {kind}:" + listed(rows, N_LISTED).replace("\n", "\n    ") for kind, rows in kinds.items()
        ]
        if self.duplicates:
            shown = " = ".join(self.duplicates[0])
            found.append(f"{len(self.duplicates)} files have several ids, for example {shown}")
        if self.wrong_language:
            n = len(self.wrong_language)
            found.append(
                f"{n} descriptions are not in their stated language, for example of {self.wrong_language[0]!r}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rows": self.n_rows,
            "usable": len(self.samples),
            "bad": [vars(row) for row in self.bad],
            "media": dict(self.modalities()),
            "duration_s": {"median": statistics.median(self.duration_s), "total": sum(self.duration_s)}
            if self.duration_s
            else None,
            "texts": dict(self.texts()),
            "labels": dict(self.labels().most_common()),
            "labels_per_clip": {str(key): value for key, value in sorted(self.labels_per_clip().items())},
            "fixed_labels": dict(self.fixed_labels().most_common()),
            "duplicates": [list(ids) for ids in self.duplicates],
            "wrong_language": list(self.wrong_language),
        }


def _top(counts: Counter[Any], n: int) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common(n)) + _more(counts, n)


def _more(counts: Counter[Any], n: int) -> str:
    return f" and {len(counts) - n} more" if len(counts) > n else ""


def _kind(reason: str) -> str:
    """The kind of a problem, by its message."""
    kinds = {
        "no such file": "missing files",
        "has 0 bytes": "empty files",
        "is truncated": "truncated files",
        "ends after": "truncated files",
        "no index": "truncated files",
        "the decoder crashed": "damaged files",
        "the file is damaged": "damaged files",
        "is probably damaged": "damaged files",
        "cannot be": "unreadable files",
        "must be unique": "rows with a duplicate id",
        "duplicate id": "rows with a duplicate id",
        "labels must be": "rows with unusable labels",
        "labels are abbreviated": "rows with unusable labels",
        "is not Unicode text": "rows with text that is not Unicode",
        "unknown columns": "rows with unknown columns",
        "not JSON": "rows that are not JSON",
        "cells, found": "rows with another number of cells than the header",
    }
    return next((kind for words, kind in kinds.items() if words in reason), "other bad rows")


def check_samples(
    name: str,
    samples: Sequence[Sample],
    bad: Iterable[BadSample] = (),
    *,
    facts: MediaFacts | None = None,
    decode: bool = False,
) -> DataReport:
    """Check every row and the headers of every file. Files are read in processes of their own: see `media.isolated`.

    Args:
        bad: rows that could not be read.
        decode: also decode every clip completely, which finds damage that headers do not show.
    """
    facts = facts or MediaFacts()
    bad = list(bad)
    n_rows = len(samples) + len(bad)
    with isolated_media():
        usable, bad_media = probe_samples(samples, on_bad="skip", facts=facts)
        bad += bad_media
        if decode:
            usable, damaged = check_each(usable, _decoded, on_bad="skip", what="decoding")
            bad += damaged
    infos = [facts.info(path) for sample in usable if (path := sample.video or sample.audio)]
    report = DataReport(
        name,
        n_rows,
        bad,
        usable,
        [duration for info in infos if (duration := _duration_s(info)) is not None],
        Counter((info.width, info.height) for info in infos if info.width and info.height),
        find_duplicates(usable, facts),
        [sample.id for sample in usable if _is_wrong_language(sample)],
    )
    facts.save()
    return report


def find_duplicates(samples: Iterable[Sample], facts: MediaFacts) -> list[tuple[str, ...]]:
    """Groups of ids whose files have the same bytes, or are the same file; only files of equal size are hashed."""
    by_size: dict[int, list[Sample]] = {}
    for sample in samples:
        if path := sample.video or sample.audio:
            by_size.setdefault(Path(path).stat().st_size, []).append(sample)
    by_content: dict[str, list[str]] = {}
    for same in by_size.values():
        for sample in same if len(same) > 1 else ():
            by_content.setdefault(facts.sha256(str(sample.video or sample.audio)), []).append(sample.id)
    return [tuple(ids) for ids in by_content.values() if len(ids) > 1]


def _decoded(sample: Sample) -> Sample:
    load_clip(sample, sample.modalities or (), SamplingConfig())
    return sample


def _duration_s(info: MediaInfo) -> float | None:
    return info.duration_s if info.duration_s is not None else (info.video_duration_s or info.audio_duration_s)


def _is_wrong_language(sample: Sample) -> bool:
    """Whether an English description is mostly Chinese characters, or a Chinese one has hardly any."""
    for lang in {sample.lang, *sample.translations}:
        if text := sample.in_language(lang).description:
            letters = len(_LETTER.findall(text))
            share = len(_CHINESE.findall(text)) / max(1, letters)
            if letters and (share > 0.5 if lang == "en" else lang == "zh" and share < 0.1):
                return True
    return False


def write_reports(folder: Path, reports: Sequence[DataReport], leaks: Sequence[str] = ()) -> list[Path]:
    """Write health.json, bad_samples.jsonl, and plots of each report as PNG, SVG and PDF; returns the files."""
    content = {"reports": [report.to_dict() for report in reports], "leaks": list(leaks)}
    files = [folder / "health.json"]
    write_json_atomic(files[0], content)
    if bad := [row for report in reports for row in report.bad]:
        files.append(folder / "bad_samples.jsonl")
        write_jsonl(files[-1], bad)
    for number, report in enumerate(reports):
        stem = folder / ("health" if len(reports) == 1 else f"health-{number + 1}")
        draw_data(
            stem,
            title=f"{report.name}: {len(report.samples)} of {report.n_rows} rows usable",
            durations_s=report.duration_s,
            labels=report.labels() or report.fixed_labels(),
            labels_per_clip=report.labels_per_clip(),
            contents={**report.modalities(), **report.texts()},
        )
        files += [stem.with_suffix(suffix) for suffix in (".png", ".svg", ".pdf")]
    return files
