"""Do the attention maps mean something? `showattend evaluate-attention --dataset FOLDER_OR_ID --output-dir OUT`."""

import json
from collections.abc import Sequence
from pathlib import Path

from showattend.command_line import SEARCH, CommandParser, add_search, given, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "evaluate-attention",
        "Measure how far the log probability of a caption's nouns falls when the cells they looked at are covered.",
    )
    parser.add_checkpoint()
    parser.add_dataset(split=True)
    parser.add_argument("--output-dir", type=Path, required=True, help="for figures.json and curve.png")
    parser.add_argument("--max-images", metavar="N", type=whole_number(1), help="only the first N images")
    parser.add_argument(
        "--num-cells", metavar="K", type=whole_number(1), nargs="+", default=[5, 10, 20], help="default: 5 10 20"
    )
    parser.add_argument(
        "--cover-pixels",
        action="store_true",
        help="grey out pixels, which is slower; default: replace features by their mean",
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
        from showattend.data.captions import load_split
        from showattend.evaluation.scoring import check_output_dir, describe_data
        from showattend.generation import generation_config

        check_output_dir(options.output_dir)
        model, processor = load_captioner(options.checkpoint)
        model.to(best_device())  # type: ignore[arg-type]
        search = generation_config(model.generation_config, **given(options, *SEARCH))
        images = load_split(options.dataset, options.split, options.image_column, options.caption_column)
        images = images.select(range(min(options.max_images or len(images), len(images))))
        with tqdm(range(0, len(images), options.batch_size), unit="batch") as starts:
            measured = measure_occlusion(
                model,
                processor,
                (images[start : start + options.batch_size]["image"] for start in starts),
                options.num_cells,
                cover_pixels=options.cover_pixels,
                generation_config=search,
            )
        figures = {
            "checkpoint": options.checkpoint,
            **describe_data(options.dataset, options.split),
            "generation": {name: getattr(search, name) for name in ("num_beams", "no_repeat_ngram_size")},
            "covered": "pixels" if options.cover_pixels else "features",
            **measured.summary(),
        }
        (options.output_dir / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        plot_falls(figures, options.output_dir / "curve.png")
    for fall in figures["falls"]:
        low, high = fall["interval"]
        print(f"{fall['cells']:>3} cells, {fall['covered']:<10}  {fall['mean']:.3f} [{low:.3f}, {high:.3f}]")
    return 0
