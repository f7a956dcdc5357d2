"""Near-duplicates: the groups that the exact similarity gives, in constant memory."""

from __future__ import annotations

import tracemalloc

from affectgpt.annotate import duplicates as duplicates_module
from affectgpt.annotate.duplicates import Duplicates, add_texts, duplicate_findings, shingle_similarity, shingles
from affectgpt.annotate.record import Clue
from tests.annotate.toy import record


def clue(text: str, modality: str = "visual") -> Clue:
    return Clue(modality, text, source="toy")


def test_near_duplicates_are_those_whose_shingles_have_the_jaccard_similarity():
    texts = [
        f"A long enough sentence that nobody else says, with number {number} in it, and a tail." for number in range(40)
    ]
    texts += [text + "!" for text in texts[:20]] + ["Quite another matter altogether: rain, wind, and a dog."]
    pieces = [shingles(text) for text in texts]
    duplicates = Duplicates(threshold=0.97)
    records = [record(f"c{number:02d}", description={"en": text}) for number, text in enumerate(texts)]
    add_texts(records, duplicates)
    for number, item in enumerate(records):
        earlier = [shingle_similarity(pieces[number], pieces[other]) for other in range(number)]
        has = any(finding.check == "near_duplicate" for finding in duplicate_findings(item, duplicates))
        assert has == (max(earlier, default=0.0) >= 0.97)
    assert sum("near_duplicate" in [f.check for f in duplicate_findings(item, duplicates)] for item in records) >= 20


def test_equal_texts_are_found_among_hundreds_of_similar_ones(monkeypatch):
    monkeypatch.setattr(duplicates_module, "MAX_IN_BAND", 2)
    duplicates = Duplicates(threshold=0.99)
    for number in range(60):
        duplicates.add("description", f"c{number}", f"The median pitch is {number} Hz and the speech is slow and even.")
    duplicates.add("description", "again", "The median pitch is 59 Hz and the speech is slow and even.")
    assert duplicates.group("description", "again") == ("c59", 2)


def test_a_shared_clue_is_found_in_all_its_clips_in_constant_memory():
    def many(n):
        for number in range(n):
            yield record(
                f"c{number}", clues=(clue("He leans on the table."),), description={"en": f"{number:05d} " * 30}
            )

    def peak(n):
        duplicates = Duplicates()
        tracemalloc.start()
        add_texts(many(n), duplicates)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size, duplicates

    small, _ = peak(100)
    large, duplicates = peak(400)
    assert large < 1.5 * small
    assert [f.check for f in duplicate_findings(record("c0", clues=(clue("He leans on the table."),)), duplicates)] == [
        "repeated_clue"
    ]
