import numpy as np
import pytest

from affectgpt.media import EmptyMedia, MediaError, MissingMedia, probe_faces, read_faces


def save(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def test_bgr_becomes_rgb(tmp_path):
    crops = np.zeros((3, 112, 112, 3), dtype=np.uint8)
    crops[..., 2] = 200  # red, in BGR order
    faces = read_faces(save(tmp_path / "f.npy", crops))
    assert faces.shape == (3, 112, 112, 3)
    assert faces[0, 0, 0].tolist() == [200, 0, 0]


def test_faces_are_spaced_like_frames(tmp_path):
    crops = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 112, 112, 3))
    faces = read_faces(save(tmp_path / "f.npy", crops), n_frames=4)
    assert faces[:, 0, 0, 0].tolist() == [0, 2, 5, 7]


def test_a_file_in_rgb_order_is_returned_unchanged(tmp_path):
    crops = np.zeros((1, 96, 80, 3), dtype=np.uint8)
    crops[..., 0] = 200
    path = save(tmp_path / "f.npy", crops)
    assert read_faces(path, order="rgb")[0, 0, 0].tolist() == [200, 0, 0]
    assert probe_faces(path) == (1, 96, 80)
    with pytest.raises(ValueError, match="bgr or rgb, found 'grb'"):
        read_faces(path, order="grb")


def test_another_array_is_an_error_with_both_shapes(tmp_path):
    with pytest.raises(MediaError, match=r"expected face crops uint8 \[n, height, width, 3\], found float64 \[2, 5\]"):
        read_faces(save(tmp_path / "f.npy", np.zeros((2, 5))))


def test_pickled_objects_are_not_loaded(tmp_path):
    with pytest.raises(MediaError, match=r"f\.npy: not a \.npy array of face crops"):
        read_faces(save(tmp_path / "f.npy", np.array([{"a": 1}], dtype=object)))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01"])
def test_a_broken_file_is_an_error(tmp_path, content):
    (tmp_path / "f.npy").write_bytes(content)
    with pytest.raises(MediaError, match=r"f\.npy: not a \.npy array"):
        read_faces(tmp_path / "f.npy")


def test_no_file_and_no_face_are_errors(tmp_path):
    with pytest.raises(MissingMedia, match="no such file"):
        read_faces(tmp_path / "gone.npy")
    with pytest.raises(EmptyMedia, match="has no face crops"):
        read_faces(save(tmp_path / "f.npy", np.zeros((0, 112, 112, 3), dtype=np.uint8)))
