"""Caption photos: `scripts/caption.py PHOTO [PHOTO ...]`; one sentence a photo."""

import argparse
import sys

from transformers.utils import logging

from modeling_showattend.captioner import DEFAULT_CHECKPOINT, load_captioner


def main() -> None:
    parser = argparse.ArgumentParser(description="Caption photos.")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="file or URL")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
    parser.add_argument("--num-beams", "--num_beams", type=int, help="1: greedy search; default: the checkpoint's")
    options = parser.parse_args()
    logging.disable_progress_bar()
    try:
        model, processor = load_captioner(options.checkpoint)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

    failed = False
    for photo in options.photos:
        try:
            inputs = processor(images=photo, return_tensors="pt")
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        settings = {} if options.num_beams is None else {"num_beams": options.num_beams}
        caption = processor.batch_decode(model.generate(**inputs, **settings), skip_special_tokens=True)[0]
        print(caption if len(options.photos) == 1 else f"{photo}\t{caption}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
