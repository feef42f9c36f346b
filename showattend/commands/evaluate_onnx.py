"""Measure an exported captioner: `showattend evaluate-onnx FOLDER --dataset FOLDER_OR_ID --checkpoint CHECKPOINT`."""

from collections.abc import Sequence

from showattend.command_line import CommandParser, given, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("evaluate-onnx", "Measure the scores, the speed and the size of an exported captioner.")
    parser.add_argument("folder", metavar="FOLDER", help="what showattend export-onnx wrote")
    parser.add_dataset(split=True)
    parser.add_argument("--checkpoint", help="the captioner that was exported, to measure torch as well")
    parser.add_argument("--precision", nargs="+", help="default: all that FOLDER holds")
    parser.add_argument("--num-beams", metavar="N", type=whole_number(1), help="1: greedy search; default: as exported")
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        parser.hide_progress_bars()
        from showattend.evaluation.scoring import summary
        from showattend.export.onnx_evaluation import evaluate_onnx

        figures = evaluate_onnx(
            options.folder,
            options.dataset,
            options.precision,
            options.checkpoint,
            options.split,
            **given(options, "num_beams", "image_column", "caption_column"),
        )
    measured = [name for name in ("megabytes", "milliseconds", "as_torch") if options.checkpoint or name != "as_torch"]
    columns = [*measured, *next(iter(figures.values()))["metrics"]]
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, row in figures.items():
        cells = {**row, **row["metrics"]}
        print(f"| {name} | {' | '.join(f'{cells[column]:.1f}' for column in columns)} |")
    for name, row in figures.items():
        print(f"\n{name}: {summary(row)}")
    return 0
