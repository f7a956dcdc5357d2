"""The annotator without a model."""

from __future__ import annotations

from affectgpt.annotate.exporters import records_in
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
