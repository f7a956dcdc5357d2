"""The annotator without a model."""

from __future__ import annotations

from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.local import conclude
from affectgpt.annotate.record import Fact
from tests.annotate.conftest import annotate


def test_the_local_annotator_describes_movements_and_uses_measurements_only(films, tmp_path):
    out = tmp_path / "out"
    annotate(films, out, f"openface='{films.parent / 'openface'}'")
    record = next(record for record in records_in(out) if record.id == "film0")
    visual = next(clue for clue in record.clues if clue.modality == "visual")
    assert "lip corners pulled up (0.0-1.1 s)" in visual.text.replace("(0.2-", "(0.0-")
    assert set(visual.evidence) == {"face_tracked_share", "AU06", "AU12"}
    assert record.labels[0] == "happy"  # cheeks and lip corners: MERR's rule
    assert record.confidence == 0.2


def weeps_and_widens_the_mouth(widened_from_s: float) -> list[str]:
    facts = [
        Fact("peak_s", "visual", 3.0, "s"),
        Fact("lips_pressed", "visual", 0.1, "eye distances", 2.0, 4.0),
        Fact("eyes_closed", "visual", 0.02, "eye widths", 0.6, 5.6),
        *(
            Fact(name, "visual", 0.2, "eye distances", widened_from_s, widened_from_s + 3)
            for name in ("mouth_widened", "mouth_corners_raised")
        ),
    ]
    return [rule.label[0] for rule in conclude(facts)]


def test_a_mouth_that_widens_in_weeping_is_no_smile_but_one_that_widens_after_it_is():
    assert weeps_and_widens_the_mouth(3.0) == ["sad"]
    assert weeps_and_widens_the_mouth(9.0) == ["happy", "sad"]
