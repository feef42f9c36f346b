"""What docs/how_it_works.md names exists in the code."""

import re
from importlib import import_module

import pytest
from tiny_flickr import ROOT

from modeling_showattend import ShowAttendConfig, modeling_showattend

TABLE = [line for line in (ROOT / "docs" / "how_it_works.md").read_text().splitlines() if line.startswith("|")]
EQUATIONS = [line for line in TABLE if line.rstrip().endswith("` |")]


@pytest.mark.parametrize("name", sorted({name for line in EQUATIONS for name in re.findall(r"`([^`]+)`", line)}))
def test_names_are_those_of_the_code(name: str) -> None:
    if re.fullmatch(r"[a-z_]+(=.*)?", name):
        assert hasattr(ShowAttendConfig(), name.split("=")[0])
        return
    module, *path = name.split(".")
    found = modeling_showattend
    if module == "showattend":
        module, _, attribute = name.rpartition(".")
        found, path = import_module(module), [attribute]
    else:
        path = [module, *path]
    for attribute in path:
        found = getattr(found, attribute)
    assert callable(found)


def test_the_main_equations_are_there() -> None:
    text = " ".join(line.split("|")[1] for line in EQUATIONS)
    assert all(re.search(rf"\b{number}\b", text) for number in (1, 2, 3, 4, 5, 6, 7, 8, 13, 14))
