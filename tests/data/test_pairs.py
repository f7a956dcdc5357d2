"""Training pairs from EmoPrefer's table."""

import logging

from affectgpt.data.formats import read_format
from affectgpt.schema import BadSample


def test_rows_of_emoprefer_become_samples_with_a_rejected_description_and_ties_are_counted(tmp_path, caplog):
    (tmp_path / "video").mkdir()
    for name in ("v1", "v2"):
        (tmp_path / "video" / f"{name}.mp4").touch()
    rows = [
        "name,a1,a2,preference",
        "v1,sad face,loud voice,a1",
        "v1,sad face,calm voice,a2",
        "v2,x,y,same",
        "v2,x,x,a1",
    ]
    (tmp_path / "track3_emoprefer.csv").write_text("\n".join(rows) + "\n")
    with caplog.at_level(logging.INFO, logger="affectgpt"):
        found, _ = read_format("preference_pairs", tmp_path, {"video": "video"})
    assert [(each.id, each.description, each.rejected) for each in found[:2]] == [
        ("v1", "sad face", "loud voice"),
        ("v1~2", "calm voice", "sad face"),
    ]
    assert isinstance(found[2], BadSample)
    assert "same text" in found[2].reason
    assert "1 pairs are left out, in which people prefer neither" in caplog.text
