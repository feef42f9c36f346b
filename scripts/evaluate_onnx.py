"""`showattend evaluate-onnx`, from a clone."""

import sys

from showattend.commands.evaluate_onnx import main

if __name__ == "__main__":
    sys.exit(main())
