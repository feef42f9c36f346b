"""Write the stored results into model_card.md and README.md, and the card into the published checkpoint's folder."""

import argparse
import sys
from pathlib import Path

from showattend import DEFAULT_CHECKPOINT
from showattend.hub.model_card import figures_of_readme, published_card, stored_figures, with_stored_figures

ROOT = Path(__file__).parent.parent


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        results = ROOT / "docs" / "results"
        for path, stored in (
            (ROOT / "model_card.md", stored_figures(results)),
            (ROOT / "README.md", figures_of_readme(results)),
        ):
            path.write_text(with_stored_figures(path.read_text(), stored))
        if DEFAULT_CHECKPOINT.is_dir():
            for name, content in published_card(ROOT / "model_card.md").items():
                path = DEFAULT_CHECKPOINT / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
