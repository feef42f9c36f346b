"""`showattend evaluate-onnx`, from a clone."""

from showattend.commands.evaluate_onnx import main

if __name__ == "__main__":
    raise SystemExit(main())
