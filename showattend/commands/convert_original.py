"""Convert a checkpoint of the write-up's code: `showattend convert-original MODEL.pth OUT_FOLDER`."""

from collections.abc import Sequence

from showattend.command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "convert-original", "Convert a checkpoint of the write-up's training code to a folder for the Auto classes."
    )
    parser.add_argument("checkpoint", metavar="MODEL.pth", help="the saved state_dict")
    parser.add_argument("output_dir", metavar="OUT_FOLDER", help="folder to save model and processor to")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        default="bert-base-uncased",
        help="Hub id, folder or vocab.txt of the vocabulary it was trained with (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from showattend.hub.conversion import convert_checkpoint

        convert_checkpoint(options.checkpoint, options.output_dir, options.tokenizer)
    print(f"Saved model and processor to {options.output_dir}.")
    return 0
