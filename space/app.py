"""The browser app as a Hugging Face Space; README.md says what has to lie beside this file."""

import os
import signal
import threading
from pathlib import Path

from showattend import DEFAULT_CHECKPOINT
from showattend.app.server import serving
from showattend.checkpoints import load_captioner

signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the uploads are deleted
model, processor = load_captioner(os.environ.get("CHECKPOINT", DEFAULT_CHECKPOINT))
with serving(model, processor, sorted(Path(__file__).with_name("photos").glob("*.*")), host="0.0.0.0"):
    threading.Event().wait()
