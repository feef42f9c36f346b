"""Export a captioner to ONNX: `showattend export-onnx CHECKPOINT [OUT] --calibration PHOTOS`; no torch needed then."""

from collections.abc import Sequence
from pathlib import Path

from showattend.command_line import CommandParser
from showattend.export import PRECISIONS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("export-onnx", "Export a captioner to a folder that runs with ONNX Runtime alone.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the captioner's folder or Hub id")
    parser.add_argument(
        "output_dir",
        metavar="OUT",
        nargs="?",
        help="folder to write, where an earlier export is replaced; default: CHECKPOINT/onnx, which push-to-hub "
        "uploads and from which the web page is built",
    )
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--calibration", metavar="FOLDER", help="photos to calibrate int8 on, such as training photos")
    options = parser.parse_args(arguments)
    if options.output_dir is None and not Path(options.checkpoint).is_dir():
        parser.error(f"name the folder OUT to write to: {options.checkpoint} is not a folder")
    output_dir = options.output_dir or Path(options.checkpoint) / "onnx"
    with parser.reporting(2):
        parser.hide_progress_bars()
        from showattend.export.onnx_export import export_onnx

        report = export_onnx(options.checkpoint, output_dir, options.precision, options.calibration)
    print("Differences from torch, relative to the values:")
    for precision, figures in report.items():
        megabytes = figures.pop("megabytes")
        differences = "  ".join(f"{name} {difference:.1e}" for name, difference in figures.items())
        print(f"{precision:8} {megabytes:6.1f} MB  {differences}")
    return 0
