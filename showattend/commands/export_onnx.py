"""Export a captioner to ONNX: `scripts/export_onnx.py CHECKPOINT OUT --calibration PHOTOS`; OUT runs without torch."""

import argparse
import sys

from transformers.utils import logging


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a captioner to a folder that runs with ONNX Runtime alone.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the captioner's folder or Hub id")
    parser.add_argument("output_dir", metavar="OUT", help="folder to write; an earlier export there is replaced")
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "float16", "int8"], default=["float32", "float16", "int8"]
    )
    parser.add_argument("--calibration", metavar="FOLDER", help="photos to measure int8's ranges on, train photos say")
    options = parser.parse_args()
    logging.disable_progress_bar()
    try:
        from showattend.export.onnx_export import export_onnx

        report = export_onnx(options.checkpoint, options.output_dir, options.precision, options.calibration)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("Differences from torch, relative to the values:")
    for precision, figures in report.items():
        megabytes = figures.pop("megabytes")
        differences = "  ".join(f"{name} {difference:.1e}" for name, difference in figures.items())
        print(f"{precision:8} {megabytes:6.1f} MB  {differences}")
