import errno
import io
import os
from pathlib import Path

import pytest

from showattend.captioning.inputs import image_suffixes, is_one_file, list_files, read_names

FILES = ["b.jpg", "a.PNG", "notes.txt", "weights.h5", ".hidden.jpg", "sub/c.webp", "sub/deep/d.gif", ".cache/e.jpg"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def listed(*names: str) -> tuple[list[str], list[str]]:
    reports: list[str] = []
    return list(list_files(names, image_suffixes(), reports.append)), reports


def test_a_folder_gives_the_images_in_it_and_below(folder: Path) -> None:
    found = ["photos/a.PNG", "photos/b.jpg", "photos/sub/c.webp", "photos/sub/deep/d.gif"]
    assert listed("photos") == (found, [])
    assert listed("./photos") == ([f"./{path}" for path in found], [])


def test_links_pipes_and_folders_named_like_images(folder: Path) -> None:
    (folder / "sub" / "linked.jpg").symlink_to(folder / "b.jpg")
    (folder / "sub" / "nowhere.jpg").symlink_to("nothing")
    (folder / "sub" / "itself.jpg").symlink_to("itself.jpg")
    (folder / "sub" / "back").symlink_to(folder)
    (folder / "sub" / "folder.jpg").mkdir()
    os.mkfifo(folder / "sub" / "pipe.jpg")
    names, reports = listed("photos/sub")
    assert [Path(name).name for name in names] == ["c.webp", "itself.jpg", "linked.jpg", "nowhere.jpg", "d.gif"]
    assert reports == []


def test_names_stand_for_themselves(folder: Path) -> None:
    names = ["photos/notes.txt", "photos/b.jpg", "https://example.org/a*.jpg", "missing", "photos/b.jpg", ""]
    assert listed(*names) == (names, [])


def test_patterns(folder: Path) -> None:
    assert listed("photos/*.jpg") == (["photos/b.jpg"], [])
    # as in a shell: matches are listed
    assert "photos/notes.txt" in listed("photos/*")[0]
    assert "photos/sub/deep/d.gif" in listed("photos/*")[0]
    assert sorted(listed("photos/**")[0]) == listed("photos")[0]
    assert listed("photos/*.tiff") == ([], ["no file matches photos/*.tiff"])
    (folder / "x[1].jpg").write_bytes(b"")
    assert listed("photos/x[1].jpg") == (["photos/x[1].jpg"], [])


def test_folders_without_images(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert listed("photos/empty") == ([], ["no file in the folder photos/empty ends in .jpg, .png or the like"])
    assert listed("photos")[1] == []


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listed("photos") == ([], ["cannot read the folder photos: Permission denied"])


def test_names_on_standard_input() -> None:
    assert list(read_names(io.BytesIO(b"a.jpg\n\nb c.jpg\r\n\xff.jpg"))) == ["a.jpg", "b c.jpg", "\udcff.jpg"]
    assert list(read_names(io.BytesIO(b"a\nb.jpg\0c.jpg\0"))) == ["a\nb.jpg", "c.jpg"]
    assert list(read_names(io.BytesIO(b""))) == []
    long = [f"{'x' * 99}{number}" for number in range(2000)]  # more than one read returns
    assert list(read_names(io.BytesIO("\n".join(long).encode()))) == long


def test_which_names_stand_for_one_file(folder: Path) -> None:
    assert all(map(is_one_file, ["photos/b.jpg", "missing.jpg", "https://example.org/photo?size=*"]))
    assert not any(map(is_one_file, ["photos", "photos/*", "-"]))
