"""The versions that the tests run with: `versions.py oldest`, `versions.py moved`.

oldest: all lower bounds of pyproject.toml at once, as constraints for pip.
moved: the packages of constraints.txt that are installed in another version, when the newest releases fail.
"""

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent


def oldest(pyproject: str) -> list[str]:
    """`name==version` of every `"name>=version"` and `"name[extra]>=version"`."""
    return [f"{name}=={low}" for name, low in re.findall(r'"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)', pyproject)]


def moved(constraints: str) -> list[str]:
    """`name tested -> installed` of every `name==tested` that is installed in none of its tested versions."""
    tested: dict[str, list[str]] = {}
    for name, number in re.findall(r"^([\w-]+)==([^;\s]+)", constraints, flags=re.MULTILINE):
        tested.setdefault(name, []).append(number)
    changes = []
    for name, numbers in tested.items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if installed not in numbers:
            changes.append(f"{name} {numbers[0]} -> {installed}")
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["oldest", "moved"])
    if parser.parse_args().which == "oldest":
        print("\n".join(oldest((ROOT / "pyproject.toml").read_text())))
        return
    changes = moved((ROOT / "constraints.txt").read_text())
    names = ", ".join(changes) or "none: the cause is a package that it does not name, or not a version at all"
    print(f"error: the newest releases fail. Against constraints.txt, these moved: {names}.", file=sys.stderr)


if __name__ == "__main__":
    main()
