"""COCO's annotations: JSON with lists of images and of captions, a file for each split."""

import json
from collections.abc import Iterator
from pathlib import Path

from ..problems import Problems
from ..rows import Row, place
from .image_files import ImageFiles


def read(path: Path, split: str | None, problems: Problems) -> Iterator[Row]:
    """Rows; their number is a caption's index in the file's `annotations`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        images, annotations = list(content["images"]), list(content["annotations"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, an object with lists `images` and `annotations` ({error!r})") from error
    names: dict[int | str, tuple[int, str]] = {}
    for number, image in enumerate(images):
        try:
            names[image["id"]] = number, image["file_name"].strip()
        except (KeyError, TypeError, AttributeError) as error:
            problems.add("malformed rows", f"{path.name}, images[{number}]", f"expected id and file_name ({error!r})")

    captions: dict[int | str, list[tuple[int, str]]] = {image_id: [] for image_id in names}
    for number, annotation in enumerate(annotations):
        try:
            captions[annotation["image_id"]].append((number, annotation["caption"].strip()))
        except (KeyError, TypeError, AttributeError) as error:
            what = f"expected the image_id of one of the images, and a caption ({error!r})"
            problems.add("malformed rows", f"{path.name}, annotations[{number}]", what)

    files = ImageFiles(_roots(path)[0], *_inner(path))
    for image_id, (number, name) in names.items():
        image = files.find(name)
        if not captions[image_id]:
            what = f"{name!r} has no caption"
            problems.add("listed images without captions", place(f"{path.name}, images[]", number), what)
        for place_in_file, caption in captions[image_id]:
            yield Row(f"{path.name}, annotations[]", place_in_file, name, image, [caption], split)


def has_images(path: Path) -> bool:
    """Whether there is a folder of the images of an annotation file."""
    return any((folder / inner).is_dir() for folder in _roots(path) for inner in _inner(path))


def _roots(path: Path) -> list[Path]:
    return [path.parent.parent, path.parent] if path.parent.name == "annotations" else [path.parent]


def _inner(path: Path) -> list[str]:
    name = path.stem.removeprefix("captions_")  # train2017
    return [name, f"images/{name}"]
