"""Take the screenshots of the browser app for docs/app.md: `scripts/screenshot_app.py --word grass`; needs Chromium."""

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from showattend import DEFAULT_CHECKPOINT
from showattend.app.server import serving
from showattend.checkpoints import load_captioner

DOCS = Path(__file__).parent.parent / "docs"
WINDOWS: dict[str, dict[str, Any]] = {
    "app.webp": {"viewport": {"width": 960, "height": 760}, "device_scale_factor": 1.5},
    "app-phone.webp": {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "color_scheme": "dark"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=f"Take screenshots of the browser app: {', '.join(WINDOWS)}.")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
    parser.add_argument("--photo", default="dog", help="an example photo; default: dog")
    parser.add_argument("--word", required=True, help="a word of the caption, to point at")
    parser.add_argument("--output-dir", type=Path, default=DOCS, help="default: docs")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    examples = sorted((DOCS / "photos").glob("*.*"))
    with serving(*load_captioner(options.checkpoint), examples, port=options.port) as url, sync_playwright() as library:
        browser = library.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, window in WINDOWS.items():
            page = browser.new_page(**window)
            page.set_default_timeout(120_000)
            page.goto(url)
            page.get_by_role("button", name=f"Example photo: {options.photo}").click()
            page.wait_for_selector("#announcement:not(:empty)", state="attached")
            page.locator("#captions .word", has_text=options.word).first.hover()
            page.wait_for_timeout(1000)  # for the light to come
            Image.open(io.BytesIO(page.screenshot())).save(options.output_dir / name, quality=80, method=6)
            print(f"{options.output_dir / name}\t{page.inner_text('#announcement')}")
        browser.close()


if __name__ == "__main__":
    main()
