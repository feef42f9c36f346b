"""A dataset captioned on a real Ray cluster of this machine: every row is written once, even if a worker dies."""

import importlib.util
import os
import signal
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_flickr import COLOURS, SHAPES, draw

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor

if missing := [name for name in ("ray", "onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
    pytest.skip(f"needs {', '.join(missing)}: pip install them", allow_module_level=True)

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from showattend.captioning import dataset
from showattend.captioning.dataset import caption_dataset
from showattend.captioning.loading import load
from showattend.commands.caption_dataset import main
from showattend.export.onnx_export import export_onnx

MakeModel = Callable[..., ShowAttendForConditionalGeneration]
NAMES = [f"{colour}_{shape}.jpg" for colour in COLOURS for shape in SHAPES]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster whose workers run in the folder of all temporary ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        dataset._connect(None, cores=1)
    yield
    ray.shutdown()


@pytest.fixture
def checkpoint(tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel, processor: ShowAttendProcessor) -> str:
    folder = tmp_path_factory.getbasetemp() / "for ray"  # one for all tests
    if not (folder / "onnx" / "captioner.json").exists():
        make_model().save_pretrained(folder)
        processor.save_pretrained(folder)
        export_onnx(folder, folder / "onnx", ["float32"])
    return str(folder / "onnx")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixteen drawings and a broken file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(draw(*name.removesuffix(".jpg").split("_")))
    (folder / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def expected(checkpoint: str, images: Path) -> dict[str, str]:
    """The caption of each drawing, as `caption` makes it."""
    captioner = load(checkpoint)
    captions = captioner.caption([captioner.read(str(images / name)) for name in NAMES])
    texts = {name: of_image[0].text for name, of_image in zip(NAMES, captions, strict=True)}
    assert len(set(texts.values())) > 5
    return texts


def rows_in(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output, partitioning=None).to_pylist()
    return rows


def check(rows: list[dict[str, Any]], name: str, expected: dict[str, str]) -> None:
    """Each drawing has its caption and the broken file its error; there are no other rows."""
    by_name = {str(row[name]).rsplit("/")[-1]: row for row in rows}
    assert set(by_name) == {*NAMES, "broken.jpg"} and len(rows) == 17
    broken = by_name.pop("broken.jpg")
    assert (broken["caption"], broken["score"]) == (None, None)
    assert "it is empty or in no image format" in broken["error"]
    assert {name: row["caption"] for name, row in by_name.items()} == expected
    assert {row["error"] for row in by_name.values()} == {None}
    assert all(row["score"] < 0 for row in by_name.values())


def test_a_folder_of_images(cluster: None, checkpoint: str, images: Path, expected: dict[str, str]) -> None:
    output = images.parent / "out"
    assert caption_dataset(str(images), str(output), checkpoint, cores=1) == (17, 1)
    rows = rows_in(output)
    check(rows, "path", expected)
    assert list(rows[0]) == ["path", "caption", "score", "error"]


@pytest.mark.parametrize("kind", ["bytes", "struct", "struct of paths", "relative path", "absolute path"])
def test_parquet(cluster: None, checkpoint: str, images: Path, expected: dict[str, str], kind: str) -> None:
    names = [*NAMES, "broken.jpg"]
    values: dict[str, list[Any]] = {
        "bytes": [(images / name).read_bytes() for name in names],
        "struct": [{"bytes": (images / name).read_bytes(), "path": name} for name in names],
        "struct of paths": [{"bytes": None, "path": str(images / name)} for name in names],
        "relative path": names,
        "absolute path": [str(images / name) for name in names],
    }
    table = pa.table({"picture": values[kind], "name": names, "tags": [[len(name), 2] for name in names]})
    pq.write_table(table, images / "rows.parquet", row_group_size=5)
    output = images.parent / "out"
    assert caption_dataset(str(images), str(output), checkpoint, "picture", cores=1) == (17, 1)
    rows = rows_in(output)
    check(rows, "name", expected)
    assert set(rows[0]) == {"name", "tags", "row_hash", "caption", "score", "error"}
    assert all(row["tags"] == [len(row["name"]), 2] for row in rows)


def test_a_parquet_file_in_the_current_folder(
    cluster: None,
    checkpoint: str,
    images: Path,
    expected: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    names = [*NAMES, "broken.jpg"]
    pq.write_table(pa.table({"image": [os.path.relpath(images / name) for name in names], "name": names}), "a.parquet")
    output = images.parent / "out"
    assert caption_dataset("a.parquet", str(output), checkpoint, cores=1) == (17, 1)
    check(rows_in(output), "name", expected)


def test_webdataset(cluster: None, checkpoint: str, images: Path, expected: dict[str, str]) -> None:
    shards = images.parent / "shards"
    shards.mkdir()
    for number, names in enumerate((NAMES[:7], [*NAMES[7:], "broken.jpg"])):
        with tarfile.open(shards / f"{number}.tar", "w") as tar:
            for name in names:
                (images / "text").write_text(name)
                tar.add(images / name, name)
                tar.add(images / "text", f"{Path(name).stem}.txt")
    output = images.parent / "out"
    assert caption_dataset(str(shards), str(output), checkpoint, cores=1) == (17, 1)
    rows = rows_in(output)
    check(rows, "txt", expected)
    assert {row["__key__"] for row in rows} == {name.removesuffix(".jpg") for name in (*NAMES, "broken.jpg")}


def descendants(process: int) -> Iterator[tuple[int, str]]:
    """The descendants of a process: number and command."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        parents.setdefault(parent, []).append(int(folder.name))
    found = [process]
    for parent in found:
        for child in parents.get(parent, []):
            found.append(child)
            try:
                yield child, Path(f"/proc/{child}/cmdline").read_text()
            except OSError:
                continue


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="workers are found in /proc")
def test_a_worker_is_killed(
    cluster: None, checkpoint: str, images: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    killed: list[int] = []

    class Deadly(SimpleHTTPRequestHandler):
        """Kills the worker that asks for the hundredth image."""

        def do_GET(self) -> None:
            asked.append(self.path)
            if len(asked) == 100:
                for process, title in descendants(os.getpid()):
                    if title.startswith("ray::MapWorker"):
                        os.kill(process, signal.SIGKILL)
                        killed.append(process)
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Deadly, directory=str(images)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(dataset, "BATCHES", 2)
    try:
        names = [f"{name}?{number}" for number in range(10) for name in NAMES]
        urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in names]
        (images.parent / "in").mkdir()
        for part in range(4):
            table = pa.table({"image": urls[part::4], "name": names[part::4]})
            pq.write_table(table, images.parent / "in" / f"{part}.parquet")
        output = images.parent / "out"
        counts = caption_dataset(str(images.parent / "in"), str(output), checkpoint, batch_size=4, cores=1)
    finally:
        server.shutdown()
    rows = rows_in(output)
    assert killed and len(asked) > len(names)
    assert counts == (len(names), 0)
    assert sorted(row["name"] for row in rows) == sorted(names)
    assert {row["name"]: row["caption"] for row in rows} == {name: expected[name.split("?")[0]] for name in names}


def test_resume(
    cluster: None, checkpoint: str, images: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = images.parent / "out"
    late = images.parent / NAMES[3]
    (images / NAMES[3]).rename(late)
    arguments = [str(images), str(output), f"--checkpoint={checkpoint}", "--cores=1"]
    assert main(arguments) == 1
    assert capsys.readouterr().out == f"16 rows in {output}, 1 of them with an error\n"
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert error == f"error: {output} already holds rows: continue it with --resume, or name another folder.\n"
    late.rename(images / NAMES[3])
    (output / "-unfinished.parquet").write_bytes(next(output.glob("*.parquet")).read_bytes()[:-20])
    assert main([*arguments, "--resume"]) == 0
    assert capsys.readouterr().out == f"1 rows in {output}\n"
    check(rows_in(output), "path", expected)
    assert main([*arguments, "--resume"]) == 0
    assert len(rows_in(output)) == 17


def test_what_cannot_be_captioned(cluster: None, checkpoint: str, images: Path) -> None:
    output = str(images.parent / "out")
    with pytest.raises(OSError, match=r"There is no .*nowhere"):
        caption_dataset(str(images / "nowhere"), output, checkpoint)
    with pytest.raises(OSError, match="There is no checkpoint folder nowhere"):
        caption_dataset(str(images), output, "nowhere")
    with pytest.raises(ValueError, match="`num_beams` must be a whole number from 1"):
        caption_dataset(str(images), output, checkpoint, num_beams=0)
    pq.write_table(pa.table({"photo": ["a.jpg"], "caption": ["mine"]}), images / "rows.parquet")
    with pytest.raises(ValueError, match=r"has no column image: `image_column` is one of photo, caption"):
        caption_dataset(str(images), output, checkpoint)
    with pytest.raises(ValueError, match="has a column caption itself"):
        caption_dataset(str(images), output, checkpoint, "photo")
    (images / "broken.parquet").write_bytes((images / "rows.parquet").read_bytes()[:-9])
    with pytest.raises(OSError, match=r"images/broken\.parquet cannot be read: "):
        caption_dataset(str(images), output, checkpoint, "photo")
    assert not Path(output).exists()


def test_a_cluster_that_is_not_there() -> None:
    with socket.socket() as port, pytest.raises(OSError, match=r"No Ray cluster answers at `address` 127\.0"):
        port.bind(("127.0.0.1", 0))  # and does not listen
        dataset._connect(f"127.0.0.1:{port.getsockname()[1]}", cores=1)
