"""`showattend export-onnx`, from a clone."""

import sys

from showattend.commands.export_onnx import main

if __name__ == "__main__":
    sys.exit(main())
