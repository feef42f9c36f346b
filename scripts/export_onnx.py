"""`showattend export-onnx`, from a clone."""

from showattend.commands.export_onnx import main

if __name__ == "__main__":
    raise SystemExit(main())
