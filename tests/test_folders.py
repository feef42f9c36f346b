"""Replacing a folder: errors that mean the new version cannot be written, and errors that pass through."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from showattend.folders import replacing


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
