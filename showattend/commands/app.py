"""Caption photos in the browser, and see where the network looked: `showattend app`, then open the URL it prints."""

import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from showattend.command_line import CommandParser

EXAMPLES = Path(__file__).parents[2] / "docs" / "photos"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("app", "Caption photos in the browser, and see where the network looked.")
    parser.add_checkpoint()
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, which only this machine reaches")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as Ctrl-C does, which deletes the uploads
    with parser.reporting(2):
        parser.hide_progress_bars()
        from showattend.app.server import serving
        from showattend.checkpoints import load_captioner

        model, processor = load_captioner(options.checkpoint)
        examples = sorted(EXAMPLES.glob("*.*"))
        with serving(model, processor, examples, options.host, options.port) as url, suppress(KeyboardInterrupt):
            print(f"Open {url} in a browser; Ctrl-C stops it.", flush=True)
            threading.Event().wait()
    return 0
