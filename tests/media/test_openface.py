import numpy as np
import pytest

from affectgpt.media import EmptyMedia, MediaError, MissingMedia, read_openface

HEADER = "frame, face_id, timestamp, confidence, success, AU01_r, AU12_r, AU45_r, AU12_c"
ROWS = [
    "1, 0, 0.000, 0.98, 1, 4.9, 0.00, 0.00, 0",
    "2, 0, 0.040, 0.97, 1, 0.1, 2.50, 0.00, 1",
    "3, 0, 0.080, 0.97, 1, 0.2, 0.00, 5.00, 0",
    "4, 0, 0.120, 0.30, 1, 5.0, 5.00, 0.00, 1",
    "5, 0, 0.160, 0.00, 0, 5.0, 5.00, 0.00, 0",
]


def write(path, rows=ROWS, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_spaces_in_the_header_do_not_hide_columns(tmp_path):
    units = read_openface(write(tmp_path / "v.csv"))
    assert len(units) == 5
    assert units.intensity["AU12"].tolist() == [0.0, 2.5, 0.0, 5.0, 5.0]
    assert units.presence["AU12"].tolist() == [False, True, False, True, False]
    assert set(units.intensity) == {"AU01", "AU12", "AU45"}
    assert units.timestamp_s[1] == 0.04


def test_the_peak_ignores_blinks_lost_faces_and_the_first_frames(tmp_path):
    units = read_openface(write(tmp_path / "v.csv"))
    assert units.frame[units.peak()] == 4  # the tracker was unsure there
    tracked = units.tracked(min_confidence=0.8)
    assert tracked.frame.tolist() == [1, 2, 3]
    assert tracked.frame[tracked.peak()] == 1
    settled = units.tracked(min_confidence=0.8, skip_first=1)
    assert settled.frame[settled.peak()] == 2
    assert settled.frame[settled.peak(without=())] == 3  # the blink
    with pytest.raises(ValueError, match="no rows to take"):
        units.rows(np.zeros(5, dtype=bool)).peak()


@pytest.mark.parametrize(
    ("header", "rows", "error", "words"),
    [
        (HEADER, [], EmptyMedia, "has no frames"),
        ("frame, timestamp, AU01_r", ["1, 0, 0"], MediaError, r"no columns \['confidence', 'success'\]"),
        (HEADER, [*ROWS, "6, 0, 0.2"], MediaError, r"v\.csv:7: expected 9 cells, found 3"),
        (HEADER, [ROWS[0].replace("4.9", "x")], MediaError, "a cell is not a number"),
        (HEADER, [ROWS[0], ROWS[1].replace("2, 0", "2, 1", 1)], MediaError, "has 2 faces"),
    ],
)
def test_a_broken_file_is_an_error_that_names_the_problem(tmp_path, header, rows, error, words):
    with pytest.raises(error, match=words):
        read_openface(write(tmp_path / "v.csv", rows, header))


def test_a_table_of_openface_3_is_refused_because_its_units_have_no_names(tmp_path):
    header = "timestamp,video_path,frame_index,face_id,face_detection,emotion,gaze_yaw,gaze_pitch,action_units"
    row = '2026-01-01 10:00:00,v.mp4,0,0,"[1.0, 2.0]",1,0.1,0.2,"[[0.0, 0.5, 0, 0, 0, 0, 0, 0]]"'
    with pytest.raises(MediaError, match="a table of OpenFace 3, which gives eight numbers without"):
        read_openface(write(tmp_path / "v.csv", [row], header))


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(MissingMedia, match="no such file"):
        read_openface(tmp_path / "gone.csv")


def test_a_table_of_libreface_has_intensities_and_presence_under_openfaces_names(tmp_path):
    header = "frame_idx,frame_time_in_ms,au_1,au_12,au_1_intensity,au_12_intensity,facial_expression\n"
    (tmp_path / "l.csv").write_text(header + "0,0,0,0,0.1,0.2,Neutral\n5,200.0,0,1,0.3,3.5,Happiness\n")
    units = read_openface(tmp_path / "l.csv")
    assert units.timestamp_s.tolist() == [0.0, 0.2]
    assert units.intensity["AU12"].tolist() == [0.2, 3.5]
    assert units.presence["AU12"].tolist() == [False, True]
    assert units.peak() == 1
    assert len(units.tracked()) == 2


def test_a_table_of_pyfeat_has_probabilities_and_needs_times(tmp_path):
    rows = "0.99,0.1,0.2,0\n,,,1\n0.98,0.3,0.9,2\n"
    (tmp_path / "p.csv").write_text("FaceScore,AU01,AU12,frame\n" + rows)
    with pytest.raises(MediaError, match=r"py-feat's table has no columns \['timestamp'\]; add timestamp = frame / "):
        read_openface(tmp_path / "p.csv")
    lines = "".join(f"{row},{number / 25}\n" for number, row in enumerate(rows.splitlines()))
    (tmp_path / "p.csv").write_text("FaceScore,AU01,AU12,frame,timestamp\n" + lines)
    units = read_openface(tmp_path / "p.csv")
    assert units.success.tolist() == [True, False, True]
    assert units.presence["AU12"].tolist() == [False, False, True]
    assert units.intensity == {}
    assert units.tracked().peak() == 1
    assert units.tracked().probability["AU12"].tolist() == [0.2, 0.9]
