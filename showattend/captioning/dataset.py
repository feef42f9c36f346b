"""Captions for a dataset of any size, on this machine or on a Ray cluster: images or tables in, Parquet out."""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import fs

from .inputs import image_suffixes, is_url
from .loading import load
from .outputs import Paths
from .stream import Caption, caption_stream

logger = logging.getLogger(__name__)

IMAGE = "image"  # the column of the images' bytes, of files and of WebDataset tars
RESULTS = pa.schema([("caption", pa.string()), ("score", pa.float32()), ("error", pa.string())])
KEYS = {"images": ("path",), "parquet": ("row_hash",), "tars": ("__url__", "__key__")}  # columns that identify a row
ROWS_PER_FILE = 2000  # least rows of an output file: fewer rows lose less when the job is killed, more make fewer files
BLOCK = 16 * 2**20  # bytes of images per task: what is captioned again if its worker dies
BATCHES = 8  # tasks per worker at once, to read the next task's images while one is captioned


def caption_dataset(
    source: str,
    output: str,
    checkpoint: str,
    image_column: str = IMAGE,
    batch_size: int = 32,
    cores: int = 2,
    resume: bool = False,
    address: str | None = None,
    **settings: Any,
) -> tuple[int, int]:
    """Caption every image of a dataset, and write a row for each.

    A worker that dies is replaced and its rows are captioned again; every row is written exactly once. A row whose
    image cannot be read has an `error` and no caption. The order of the rows is not kept.

    Args:
        source: A folder or URI of images, of Parquet files or of WebDataset tars, or one such file.
        output: A folder or URI for Parquet files with all columns but the images', and `caption`, `score`, `error`.
        checkpoint: As [`load`] takes it, on every machine of the cluster; `settings` are its other arguments.
        image_column: Of Parquet files: images as bytes, as structs of `bytes` and `path`, or as paths or URLs. Relative
            paths start from the folder of `source`.
        cores: How many cores a worker has. Where there are GPUs, each has one worker.
        resume: Skip the rows that `output` already holds, including those with an error.
        address: The address of a running cluster, or `auto` to find one; by default Ray starts on this machine, unless
            this process has already started it.

    Returns:
        How many rows were written, and how many of them have an error.

    Raises:
        OSError: If the job fails, because something cannot be read, written or reached.
        ValueError: If a setting is wrong, `source` lacks the column, or `output` holds rows and `resume` is False.
    """
    earlier = _parquet_files(output)
    if earlier and not resume:
        raise ValueError(f"{output} already holds rows: continue it with `resume`, or name another folder.")
    kind = _kind(source)
    load(checkpoint, **settings)  # find errors here rather than in the workers
    ours = not ray.is_initialized()
    if ours:
        _connect(address, cores)
    try:
        rows = _read(source, kind)
        columns = rows.schema().names
        if image_column not in columns:
            raise ValueError(f"{source} has no column {image_column}: `image_column` is one of {', '.join(columns)}.")
        if clash := [name for name in RESULTS.names if name in columns]:
            raise ValueError(f"{source} has a column {clash[0]} itself, which the output needs: rename it.")
        if earlier:
            done = ray.put(_keys_in(output, earlier, KEYS[kind]))
            not_done: Any = partial(_without, done=done, columns=KEYS[kind])
            rows = rows.map_batches(not_done, batch_format="pyarrow", num_cpus=0.1)
        folder = source if "://" in source else os.path.abspath(source)  # noqa: PTH100 - not pathlib: as for URIs
        if re.search(r"\.(parquet|tar)(\.\w+)?$", folder):
            folder = folder.rpartition("/")[0]
        rows = rows.map_batches(
            _Worker,
            fn_constructor_args=(checkpoint, image_column, folder, batch_size, cores, settings),
            batch_format="pyarrow",
            batch_size=BATCHES * batch_size,
            **_workers(cores),
        )
        rows.write_parquet(output, min_rows_per_file=ROWS_PER_FILE, ray_remote_args={"num_cpus": 0.1})
    except pa.ArrowInvalid as error:  # it does not say which file
        raise OSError(f"{_damaged(source) or source} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    except ray.exceptions.RayError as error:
        raise OSError(f"The Ray job failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if ours:
            ray.shutdown()
    return _count(output, set(_parquet_files(output)) - set(earlier))


# --- where the rows come from ---


def _filesystem(place: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if "://" in place:
        return fs.FileSystem.from_uri(place)
    return fs.LocalFileSystem(), os.path.abspath(place)  # noqa: PTH100 - not pathlib: as for URIs


def _kind(source: str) -> str:
    system, path = _filesystem(source)
    info = system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There is no {source}.")
    files = [info] if info.is_file else system.get_file_info(fs.FileSelector(path))
    for kind, ending in (("parquet", r"\.parquet$"), ("tars", r"\.tar(\.\w+)?$")):
        if any(re.search(ending, file.path) for file in files):
            return kind
    return "images"


def _damaged(source: str) -> str | None:
    """The first Parquet file that is damaged."""
    system, path = _filesystem(source)
    info = system.get_file_info(path)
    for file in [info] if info.is_file else system.get_file_info(fs.FileSelector(path, recursive=True)):
        if file.path.endswith(".parquet"):
            try:
                pq.read_metadata(file.path, filesystem=system)
            except pa.ArrowInvalid:
                return file.path
    return None


def _read(source: str, kind: str) -> ray.data.Dataset:
    # Reading and writing wait for disks and networks, so they must not occupy a worker's core.
    remote: dict[str, Any] = {"num_cpus": 0.1}
    if kind == "parquet":
        return ray.data.read_parquet(source, include_row_hash=True, **remote)
    extensions = [suffix.removeprefix(".") for suffix in image_suffixes()]
    if kind == "tars":
        image = re.compile(rf"\.({'|'.join(map(re.escape, extensions))})$", re.IGNORECASE)
        return ray.data.read_webdataset(
            source, decoder=False, filerename=lambda name: image.sub(f".{IMAGE}", name), **remote
        )
    files = ray.data.read_binary_files(source, include_paths=True, file_extensions=extensions, **remote)
    return files.rename_columns({"bytes": IMAGE})


# --- what the output holds ---


def _parquet_files(output: str) -> list[str]:
    system, path = _filesystem(output)
    files = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(file.path for file in files if file.path.endswith(".parquet"))


def _keys_in(output: str, files: list[str], columns: tuple[str, ...]) -> Paths:
    """The keys of the rows in the files; a file that a killed job left unfinished is deleted."""
    system, _ = _filesystem(output)

    def keys() -> Iterator[str]:
        for file in files:
            try:
                table = pq.read_table(file, columns=list(columns), filesystem=system, partitioning=None)
            except pa.ArrowInvalid:
                logger.warning("%s is incomplete: its rows are captioned again", file)
                system.delete_file(file)
            else:
                yield from _keys(table, columns)

    return Paths(keys())


def _keys(rows: pa.Table, columns: tuple[str, ...]) -> Iterator[str]:
    if absent := [name for name in columns if name not in rows.column_names]:
        raise ValueError(f"The rows of `output` have no column {absent[0]}: they are of another source.")
    values = zip(*(rows[name].to_pylist() for name in columns), strict=True)
    return ("\t".join(map(str, key)) for key in values)


def _without(rows: pa.Table, done: "ray.ObjectRef[Paths]", columns: tuple[str, ...]) -> pa.Table:
    paths = ray.get(done)
    return rows.filter(pa.array([key not in paths for key in _keys(rows, columns)], pa.bool_()))


def _count(output: str, files: set[str]) -> tuple[int, int]:
    system, _ = _filesystem(output)
    rows = errors = 0
    for file in files:
        error = pq.read_table(file, columns=["error"], filesystem=system, partitioning=None)["error"]
        rows += len(error)
        errors += len(error) - error.null_count
    return rows, errors


# --- the workers ---


def _connect(address: str | None, cores: int) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.target_max_block_size = BLOCK
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are raised
    if address and re.fullmatch(r"[\w.-]+:\d+", address):  # Ray itself tries for ten minutes
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise OSError(f"No Ray cluster answers at `address` {address}: {error}.") from error
    # On this machine, one slot more than cores, for reading and writing.
    where: dict[str, Any] = {"address": address} if address else {"num_cpus": max(cores, os.cpu_count() or 1) + 1}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)


def _workers(cores: int) -> dict[str, Any]:
    total = ray.cluster_resources()
    if gpus := int(total.get("GPU", 0)):
        return {"compute": ray.data.ActorPoolStrategy(min_size=1, max_size=gpus), "num_gpus": 1, "num_cpus": 1}
    return {
        "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(total["CPU"] - 1) // cores)),
        "num_cpus": cores,
    }


class _Worker:
    """Captions the images of a table's rows; the Ray actor of [`caption_dataset`]."""

    def __init__(
        self, checkpoint: str, image_column: str, folder: str, batch_size: int, cores: int, settings: dict[str, Any]
    ) -> None:
        self.captioner = load(checkpoint, threads=cores, **settings)
        self.image_column, self.folder, self.batch_size = image_column, folder, batch_size

    def __call__(self, rows: pa.Table) -> pa.Table:
        images = ((None, image) for image in rows[self.image_column].to_pylist())
        outcomes = [outcome for _, outcome in caption_stream(self, images, self.batch_size)]
        results = [
            {"error": str(outcome)}
            if isinstance(outcome, Exception)
            else {"caption": outcome[0].text, "score": outcome[0].score}
            for outcome in outcomes
        ]
        table = rows.drop_columns([self.image_column])
        for column in pa.Table.from_pylist(results, RESULTS).columns if results else ():
            table = table.append_column(RESULTS.field(table.num_columns - rows.num_columns + 1), column)
        return table

    def read(self, image: Any) -> Any:
        return self.captioner.read(self._source(image))

    def caption(self, images: Any) -> list[list[Caption]]:
        return self.captioner.caption(images)

    def _source(self, image: Any) -> Any:
        """What the captioner reads, of a value of the column."""
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if image is None:
            raise ValueError("the row has no image")
        if not isinstance(image, str) or is_url(image):
            return image
        absolute = "://" in image or image.startswith("/")
        system, path = _filesystem(image if absolute else f"{self.folder}/{image}")
        if isinstance(system, fs.LocalFileSystem):
            return path
        with system.open_input_file(path) as file:
            return file.read()
