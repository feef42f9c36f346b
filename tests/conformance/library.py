"""transformers' own test mixins, from the sdist of the installed version."""

import importlib
import importlib.abc
import importlib.machinery
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

PACKAGE = "transformers_tests"


def fetch() -> Path:
    """The folder that holds the package of the tests, which pip downloads once a version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "showattend-conformance"
    folder = cache / f"transformers-{transformers.__version__}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            options = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", temporary]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", *options]
            subprocess.run([*pip, f"transformers=={transformers.__version__}"], check=True)
            (sdist,) = Path(temporary).glob("transformers-*.tar.gz")
            with tarfile.open(sdist) as archive:
                archive.extractall(temporary, filter="data")
            package = Path(temporary, "package", PACKAGE)
            package.parent.mkdir()
            next(Path(temporary).glob("transformers-*/tests")).rename(package)
            (package / "__init__.py").touch()
            package.parent.rename(folder)
    return folder


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The sdist holds the files of `tests/` and not its folders: what the files import from there is empty here."""

    folders = ("exporters", "generation", "utils")
    values: dict[str, Any] = {
        "config_common_kwargs": {"return_dict": False, "output_hidden_states": True, "dtype": "float16"},
        "url_to_local_path": lambda url, *_: url,
    }

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "fetch_hub_objects_for_ci" or name.startswith(
            tuple(f"{PACKAGE}.{folder}" for folder in self.folders)
        ):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        def missing(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return self.values.get(name, type(name, (), {}))

        module.__getattr__ = missing  # type: ignore[method-assign]


def load(name: str) -> Any:
    """A module of the tests, such as `test_modeling_common`."""
    if PACKAGE not in sys.modules:
        sys.path.insert(0, str(fetch()))
        sys.meta_path.append(_Absent())
    return importlib.import_module(f"{PACKAGE}.{name}")
