"""Average the weights of captioners: `showattend average-checkpoints OUT_FOLDER START END SHARE [END SHARE ...]`."""

from collections.abc import Sequence

from showattend.command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "average-checkpoints", "Average the weights of captioners that were trained one from another."
    )
    parser.add_argument("output_dir", metavar="OUT_FOLDER")
    parser.add_argument("start", metavar="START", help="folder or Hub id of a captioner")
    parser.add_argument(
        "ends", metavar="END SHARE", nargs="+", help="a captioner that was trained from it, and its share: 0 to 1"
    )
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        parser.hide_progress_bars()
        from showattend.hub.averaging import average_checkpoints

        try:
            shares = {end: float(share) for end, share in zip(options.ends[::2], options.ends[1::2], strict=True)}
        except ValueError:
            parser.error(f"{' '.join(options.ends)}: after each captioner comes its share, a number from 0 to 1.")
        if len(shares) < len(options.ends) / 2:
            parser.error(f"{' '.join(options.ends)}: a captioner is named twice: add up its shares.")
        average_checkpoints(options.start, shares, options.output_dir)
    parts = ", ".join(f"{share:.0%} of {end}" for end, share in shares.items())
    print(f"{options.output_dir}: {options.start}, with {parts}")
    return 0
