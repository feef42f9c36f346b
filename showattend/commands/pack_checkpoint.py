"""Make a trained captioner ready to share: `showattend pack-checkpoint RUN/best OUT_FOLDER`."""

from collections.abc import Sequence

from showattend.command_line import CommandParser, given, number, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("pack-checkpoint", "Make a trained captioner ready to share.")
    parser.add_argument("checkpoint", help="folder or Hub id of the captioner")
    parser.add_argument("output_dir", metavar="OUT_FOLDER", help="where to write it, with weights in float16")
    parser.add_argument("--num-beams", metavar="N", type=whole_number(1), help="default number of beams of generate")
    parser.add_argument(
        "--length-penalty", metavar="X", type=number(-100, 100), help="default length penalty of generate"
    )
    parser.add_argument(
        "--no-repeat-ngram-size",
        metavar="N",
        type=whole_number(0),
        help="default of generate; 3: no sequence of three tokens twice",
    )
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        parser.hide_progress_bars()
        from showattend.checkpoints import weights_digest
        from showattend.hub.release import pack_checkpoint

        generation = given(options, "num_beams", "length_penalty", "no_repeat_ngram_size")
        size = pack_checkpoint(options.checkpoint, options.output_dir, **generation)
        digest = weights_digest(options.output_dir)
    print(f"{options.output_dir}: {size / 1e6:.1f} MB; sha256 of model.safetensors {digest}")
    return 0
