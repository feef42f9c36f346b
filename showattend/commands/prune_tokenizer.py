"""Saves a tokenizer reduced to the word pieces that a dataset's train captions use."""

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from showattend.data.captions import load_captions
from showattend.data.tokenization import load_tokenizer, prune_tokenizer


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Folder or Hub id of the dataset."})
    output_dir: str = field(metadata={"help": "Folder to save the reduced tokenizer to."})
    tokenizer: str = field(
        default="bert-base-uncased", metadata={"help": "Hub id, folder or vocab.txt of the tokenizer to reduce."}
    )
    seed: int = field(default=42, metadata={"help": "Of the split, for datasets without official splits."})


def main() -> None:
    parser = HfArgumentParser(Arguments, description=__doc__)  # type: ignore[arg-type]
    (arguments,) = parser.parse_args_into_dataclasses()
    try:
        tokenizer = load_tokenizer(arguments.tokenizer)
        dataset = load_captions(arguments.dataset, seed=arguments.seed)
        if "train" not in dataset:
            raise ValueError(f"{arguments.dataset} has no train split")
        pruned = prune_tokenizer(tokenizer, (text for texts in dataset["train"]["captions"] for text in texts))
        pruned.save_pretrained(arguments.output_dir)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.output_dir}: {len(pruned):,} of {len(tokenizer):,} word pieces")
