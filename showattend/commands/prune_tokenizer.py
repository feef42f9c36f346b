"""Reduce a tokenizer to the tokens that the training captions of a dataset use: `showattend prune-tokenizer`."""

from collections.abc import Sequence

from showattend.command_line import CommandParser, given


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "prune-tokenizer", "Reduce a tokenizer to the tokens that a dataset's training captions use."
    )
    parser.add_dataset()
    parser.add_argument("--output-dir", required=True, help="folder to save the reduced tokenizer to")
    parser.add_argument(
        "--tokenizer", default="bert-base-uncased", help="Hub id, folder or vocab.txt; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from showattend.data.captions import load_captions
        from showattend.data.tokenization import load_tokenizer, prune_tokenizer
        from showattend.evaluation.scoring import check_output_dir

        check_output_dir(options.output_dir)  # save_pretrained returns without an error if it is a file
        tokenizer = load_tokenizer(options.tokenizer)
        dataset = load_captions(options.dataset, **given(options, "image_column", "caption_column"))
        if "train" not in dataset:
            raise ValueError(f"{options.dataset} has no train split")
        pruned = prune_tokenizer(tokenizer, (text for texts in dataset["train"]["captions"] for text in texts))
        pruned.save_pretrained(options.output_dir)
    print(f"{options.output_dir}: {len(pruned):,} of {len(tokenizer):,} tokens")
    return 0
