"""`python -m affectgpt.data clauses`: divide descriptions into clauses, show them, check them, and write them down."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
from affectgpt.clauses import sentences, shown_clues, split, unsupported
from affectgpt.config import DataClausesConfig, LlmConfig
from affectgpt.data.command import source_of, with_relative_paths
from affectgpt.data.sources import probe_samples, read_source
from affectgpt.runtime import InputError, log, parse_json
from affectgpt.schema import CLAUSE_MODALITIES, CLUES, Clause, Sample, write_jsonl
from affectgpt.tables import format_table

PROMPT_VERSION = "1"

_PROMPT = """\
Below are the numbered sentences of a description of a person in a video (task version {version}).
Say for each sentence what it rests on: "visual" (what can be seen), "acoustic" (how the voice or other sound is), \
"lexical" (what is said), "mixed" (it relates several of these), or "inference" (a conclusion about the emotion).
For mixed and inference also list under "needs" the ones that the sentence mentions; a plain conclusion needs none.
Answer with a JSON list and nothing else: [{{"n": 1, "modality": "visual", "needs": ["visual"]}}, ...]
{sentences}"""


@dataclass
class ClauseReport:
    """Counts over the descriptions of one language.

    Attributes:
        n: descriptions; by_modality: their clauses.
        absent: ids of clips whose description makes a statement about a modality that the clip lacks.
        agreement: (modality given, modality by the rules) -> sentences, where the data set provides clauses.
        moved: ids whose clauses do not join to the description.
        by_llm, unreadable: descriptions that were divided by an LLM, and answers that could not be used.
    """

    n: int = 0
    by_modality: Counter[str] = field(default_factory=Counter)
    absent: list[str] = field(default_factory=list)
    n_probed: int = 0
    agreement: Counter[tuple[str, str]] = field(default_factory=Counter)
    moved: list[str] = field(default_factory=list)
    by_llm: int = 0
    unreadable: int = 0


def report_clauses(config: DataClausesConfig) -> int:
    """Print clauses and counts; write a manifest with clauses to `out`. Exit code 1 if there are problems."""
    source = source_of(config)
    rows = read_source(source, None, on_bad="skip")
    samples, bad = rows.samples, list(rows.bad)
    if config.probe:
        samples, bad_media = probe_samples(samples, on_bad="skip")
        bad += bad_media
    divided, report = divide(samples, config.lang, config.llm)
    for sample in divided[: config.show]:
        localized = sample.in_language(config.lang, strict=False)
        print(f"\n{sample.id}")
        lines = [(f"  {c.modality}", ", ".join(c.needs), f"  {c.text}") for c in localized.clauses or ()]
        print(format_table(lines, "lll"))
    print(f"\n{_table(report, config, len(samples), len(bad))}")
    if config.out:
        out = Path(config.out)
        if out.suffix != ".jsonl":
            raise InputError(f"clauses writes a manifest: expected out=manifest.jsonl, found out={config.out!r}")
        write_jsonl(out, [with_relative_paths(sample, out.resolve().parent) for sample in divided])
        print(f"written: {out}, {len(divided)} rows")
    return 1 if report.absent or report.moved or bad else 0


def divide(samples: Sequence[Sample], lang: str, llm: LlmConfig) -> tuple[list[Sample], ClauseReport]:
    """The samples with clauses in `lang`, from the data set, an LLM if `llm` names one, or the rules."""
    report = ClauseReport()
    texts = {sample.id: sample.in_language(lang, strict=False) for sample in samples}
    asked = {
        key: text.description.strip()
        for key, text in texts.items()
        if text.description and not text.clauses and llm.model
    }
    answered, report.unreadable = _by_llm(asked, lang, llm) if asked else ({}, 0)
    report.by_llm = len(answered)
    divided = []
    for sample in samples:
        text = texts[sample.id]
        description = (text.description or "").strip()
        if not description and not text.clauses:
            divided.append(sample)
            continue
        report.n += 1
        by_rules = split(description, lang)
        clauses = text.clauses or answered.get(sample.id) or by_rules
        report.by_modality.update(clause.modality for clause in clauses)
        if text.clauses:
            _compare(report, sample.id, description, text.clauses, by_rules)
        if sample.modalities is not None:
            report.n_probed += 1
            shown = shown_clues(sample.modalities, subtitle=bool(text.subtitle), hears_words=True)
            if unsupported(description, lang, shown):
                report.absent.append(sample.id)
        divided.append(_with_clauses(sample, lang, clauses))
    return divided, report


def _compare(
    report: ClauseReport, sample_id: str, description: str, given: Sequence[Clause], by_rules: Sequence[Clause]
) -> None:
    """Add the agreement of the rules with clauses that the data set provides, sentence by sentence."""
    known = {clause.text: clause.modality for clause in given}
    report.agreement.update((known[clause.text], clause.modality) for clause in by_rules if clause.text in known)
    without_spaces = "".join(description.split())
    place = 0
    for clause in given:  # alternative conclusions are not part of the description
        text = "".join(clause.text.split())
        if (found := without_spaces.find(text, place)) >= 0:
            place = found + len(text)
        elif not clause.labels:
            report.moved.append(sample_id)
            break


def _with_clauses(sample: Sample, lang: str, clauses: Sequence[Clause]) -> Sample:
    if lang == sample.lang:
        return replace(sample, clauses=tuple(clauses))
    texts = {**sample.translations.get(lang, {}), "clauses": tuple(clauses)}
    return replace(sample, translations={**sample.translations, lang: texts})


def _by_llm(texts: Mapping[str, str], lang: str, llm: LlmConfig) -> tuple[dict[str, tuple[Clause, ...]], int]:
    """id -> clauses, and the number of unreadable answers, which are left to the rules."""
    assert llm.model is not None
    client = ChatClient(
        llm.model,
        base_url=llm.base_url,
        cache=Path(llm.cache or "clause-answers.jsonl"),
        concurrency=llm.concurrency,
        offline=llm.offline,
    )
    parts = {key: sentences(text, lang) for key, text in texts.items()}
    answers = client.answer([Request(clause_question(each)) for each in parts.values()], refused_is_empty=True)
    found, n_unreadable = {}, 0
    for (key, each), answer in zip(parts.items(), answers, strict=True):
        clauses = parse_answer(answer.text, each)
        if clauses is None:
            n_unreadable += 1
        else:
            found[key] = clauses
    if n_unreadable:
        log.warning(
            "%d answers of %s could not be read; these descriptions are divided by rules", n_unreadable, llm.model
        )
    return found, n_unreadable


def clause_question(parts: Sequence[str]) -> str:
    return _PROMPT.format(
        version=PROMPT_VERSION, sentences="\n".join(f"{number}. {part}" for number, part in enumerate(parts, 1))
    )


def parse_answer(text: str, parts: Sequence[str]) -> tuple[Clause, ...] | None:
    """The clauses of an answer that names every sentence once with a valid modality; else None.

    >>> parse_answer('[{"n": 1, "modality": "visual"}]', ["She smiles."])[0].modality
    'visual'
    """
    match = re.search(r"\[.*\]", text, re.DOTALL)
    try:
        rows = parse_json(match.group()) if match else None
        by_number = {int(row["n"]): row for row in rows} if isinstance(rows, list) else {}
        if sorted(by_number) != list(range(1, len(parts) + 1)):
            return None
        clauses = []
        for number, part in enumerate(parts, 1):
            modality = by_number[number]["modality"]
            needs = () if modality in CLUES else tuple(n for n in CLUES if n in (by_number[number].get("needs") or ()))
            clauses.append(Clause(part, modality, needs))
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError):  # another shape than asked for
        return None
    return tuple(clauses)


def _table(report: ClauseReport, config: DataClausesConfig, n_samples: int, n_bad: int) -> str:
    lines = [f"{report.n} of {n_samples} samples have a description in {config.lang}; {n_bad} rows cannot be used"]
    counts = ", ".join(f"{name} {report.by_modality[name]}" for name in CLAUSE_MODALITIES if report.by_modality[name])
    lines.append(f"clauses: {counts}")
    if report.by_llm or report.unreadable:
        lines.append(f"divided by {config.llm.model}: {report.by_llm}; unreadable answers: {report.unreadable}")
    if total := report.agreement.total():
        same = sum(n for (given, found), n in report.agreement.items() if given == found)
        lines.append(
            f"the rules agree with the given clauses in {same} of {total} sentences ({100 * same / total:.1f} %)"
        )
        for (given, found), n in report.agreement.most_common():
            if given != found:
                lines.append(f"  given {given}, by the rules {found}: {n}")
    if report.moved:
        lines.append(f"problem: {len(report.moved)} descriptions differ from their clauses, first {report.moved[0]!r}")
    if report.n_probed:
        problem = "problem: " if report.absent else ""
        shown = f", first {report.absent[0]!r}" if report.absent else ""
        lines.append(
            f"{problem}{len(report.absent)} of {report.n_probed} descriptions make a statement about a modality that "
            f"the clip lacks{shown}"
        )
    return "\n".join(lines)
