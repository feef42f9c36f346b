"""The command `showattend`, also as `python -m showattend`. A subcommand's module is imported only when it is named."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "caption": "caption images: files, folders, URLs",
    "caption-dataset": "caption a dataset on this machine or a Ray cluster",
    "train": "train a captioner",
    "evaluate": "score a captioner on a dataset",
    "app": "caption images in the browser",
    "visualize-attention": "draw where the network looked before every word",
    "evaluate-attention": "measure whether the attention maps mean something",
    "export-onnx": "export a captioner to ONNX",
    "evaluate-onnx": "measure an exported captioner: scores, speed, size",
    "push-to-hub": "upload a captioner to the Hub",
    "pack-checkpoint": "make a trained captioner ready to share",
    "average-checkpoints": "average the weights of captioners",
    "prune-tokenizer": "reduce a tokenizer to the tokens of a dataset",
    "convert-original": "convert a checkpoint of the write-up's code",
    "fetch-original-resnet50": "fetch ImageNet weights of the original ResNet-50",
    "fetch-efficientnet-lite0": "fetch ImageNet weights of EfficientNet-Lite0",
}


def main(arguments: Sequence[str] | None = None) -> int:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="showattend",
        usage="%(prog)s COMMAND ... (showattend COMMAND --help lists its arguments)",
        description="Show, Attend and Tell: image captions, and where the network looked.",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}{summary}" for name, summary in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    name = parser.parse_args(arguments[:1]).command
    command = importlib.import_module(f"showattend.commands.{name.replace('-', '_')}")
    return command.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
