"""Do the attention maps mean something? `showattend evaluate-attention --dataset FOLDER_OR_ID --output-dir OUT`."""

import json
from collections.abc import Sequence
from pathlib import Path

from showattend.command_line import CommandParser, add_search, given, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "evaluate-attention",
        "Measure how far the log probability of a caption's nouns falls when the cells they looked at are covered.",
    )
    parser.add_checkpoint()
    parser.add_dataset()
    parser.add_argument("--output-dir", type=Path, required=True, help="for figures.json and curve.png")
    parser.add_argument("--split", default="validation", choices=["train", "validation", "test"])
    parser.add_argument("--max-images", metavar="N", type=whole_number(1), help="only the first N images")
    parser.add_argument(
        "--num-cells", metavar="K", type=whole_number(1), nargs="+", default=[5, 10, 20], help="default: 5 10 20"
    )
    parser.add_argument(
        "--cover-pixels", action="store_true", help="grey out pixels; default: replace features by their mean; slower"
    )
    parser.add_argument("--batch-size", metavar="N", type=whole_number(1), default=32)
    add_search(parser)
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from tqdm.auto import tqdm

        from showattend.attention.curve import plot_falls
        from showattend.attention.occlusion import measure_occlusion
        from showattend.captioning.generate import best_device
        from showattend.checkpoints import load_captioner
        from showattend.data.captions import load_captions

        options.output_dir.mkdir(parents=True, exist_ok=True)
        model, processor = load_captioner(options.checkpoint)
        model.to(best_device())  # type: ignore[arg-type]
        splits = load_captions(options.dataset, **given(options, "image_column", "caption_column"))
        if options.split not in splits:
            raise ValueError(f"{options.dataset} has no {options.split} split: it has {', '.join(splits)}.")
        rows = splits[options.split]
        rows = rows.select(range(min(options.max_images or len(rows), len(rows))))
        search = given(options, "num_beams", "length_penalty", "max_length")
        with tqdm(range(0, len(rows), options.batch_size), unit="batch") as starts:
            measured = measure_occlusion(
                model,
                processor,
                (rows[start : start + options.batch_size]["image"] for start in starts),
                options.num_cells,
                cover_pixels=options.cover_pixels,
                **search,
            )
        figures = {
            "checkpoint": options.checkpoint,
            "dataset": Path(options.dataset).resolve().name if Path(options.dataset).exists() else options.dataset,
            "split": options.split,
            "generation": {"num_beams": model.generation_config.num_beams or 1} | search,
            "covered": "pixels" if options.cover_pixels else "features",
            **measured.summary(),
        }
        (options.output_dir / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        plot_falls(figures, options.output_dir / "curve.png")
    for fall in figures["falls"]:
        low, high = fall["interval"]
        print(f"{fall['cells']:>3} cells, {fall['covered']:<10}  {fall['mean']:.3f} [{low:.3f}, {high:.3f}]")
    return 0
