"""Caption a dataset with Ray: `showattend caption-dataset INPUT OUTPUT`, on this machine or on a cluster."""

from collections.abc import Sequence

from showattend.command_line import SEARCH, CommandParser, add_inference, add_search, given, whole_number

EPILOG = """\
INPUT is a folder or URI (file, s3, gs) of images, of Parquet files with an image column (bytes, struct or path), or of
WebDataset tars. OUTPUT is a folder or URI for Parquet files with all other columns, caption, score (the mean log
probability of the caption's tokens) and error (why an image could not be read). A worker has a GPU, or --cores cores.
The exit code is 1 if the job failed or a row has an error, 2 if an argument is wrong.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("caption-dataset", "Caption a dataset of any size, here or on a cluster.", epilog=EPILOG)
    parser.add_argument("source", metavar="INPUT")
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_checkpoint()
    parser.add_argument("--image-column", metavar="NAME", help="in Parquet files; default: image")
    parser.add_argument("--resume", action="store_true", help="skip the rows that OUTPUT already holds")
    which = parser.add_argument_group("which captions")
    add_search(which)
    which.add_argument("--prefix", help='how every caption begins: "a photo of"')
    how = parser.add_argument_group("how they are computed")
    how.add_argument("--address", help="of a running Ray cluster, or auto; default: Ray starts on this machine")
    how.add_argument("--cores", metavar="N", type=whole_number(1), help="of a worker without a GPU; default: 2")
    add_inference(how)
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from showattend.captioning.dataset import caption_dataset

        rows, errors = caption_dataset(
            options.source,
            options.output,
            options.checkpoint,
            resume=options.resume,
            **given(options, "image_column", "address", "cores", "batch_size", "prefix", "dtype", *SEARCH),
        )
    print(f"{rows} rows in {options.output}" + (f", {errors} of them with an error" if errors else ""))
    return int(errors > 0)
