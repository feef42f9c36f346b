"""Caption photos in the browser, and see where the network looked: `scripts/app.py`, then open the URL it prints."""

import argparse
import signal
import sys
import threading
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs" / "photos"


def main() -> None:
    parser = argparse.ArgumentParser(description="Caption photos in the browser, and see where the network looked.")
    parser.add_argument("--checkpoint", help="folder or Hub id; default: checkpoints/showattend-resnet50-flickr8k")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, which only this machine reaches")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, and the uploads are deleted
    try:
        from transformers.utils import logging

        from showattend.app.server import serving
        from showattend.checkpoints import DEFAULT_CHECKPOINT, load_captioner

        logging.disable_progress_bar()
        model, processor = load_captioner(options.checkpoint or DEFAULT_CHECKPOINT)
        examples = sorted(EXAMPLES.glob("*.*"))
        with serving(model, processor, examples, options.host, options.port) as url:
            print(f"Open {url} in a browser; Ctrl-C ends it.", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        print('error: the app needs gradio: pip install -c constraints.txt -e ".[app]"', file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
