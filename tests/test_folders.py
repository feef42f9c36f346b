"""Replacing a folder: errors that mean the new version cannot be written, and errors that pass through."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from showattend.folders import check_replaceable, replacing


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (OSError("No space left on device"), OSError, r"x could not be written \(No space left.*is intact"),
        (RuntimeError("[enforce fail at inline_container.cc]"), OSError, r"x could not be written \(\[enforce fail"),
        (SafetensorError("I/O error"), OSError, r"x could not be written \(I/O error\)"),
        (ValueError("a wrong setting"), ValueError, "^a wrong setting$"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "^stop$"),
    ],
)
def test_failures_leave_the_old_version(
    tmp_path: Path, raised: BaseException, expected: type[BaseException], message: str
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "content").write_text("old")
    with pytest.raises(expected, match=message), replacing(folder) as new:
        (new / "content").write_text("half")
        raise raised
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (folder / "content").read_text() == "old"


@pytest.mark.parametrize("name", ["x", "x.new", "x.old"])
def test_what_is_not_a_captioner_is_not_replaced(tmp_path: Path, name: str) -> None:
    check_replaceable(tmp_path / "x")
    folder = tmp_path / name
    folder.mkdir()
    check_replaceable(tmp_path / "x")
    (folder / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=rf"{name} holds no captioner and would be deleted: name another folder"):
        check_replaceable(tmp_path / "x")
    (folder / "model.safetensors").write_text("")
    check_replaceable(tmp_path / "x")
