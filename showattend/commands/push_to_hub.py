"""Share a captioner on the Hub: `showattend push-to-hub CHECKPOINT REPO_ID`."""

from collections.abc import Sequence

from showattend.command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "push-to-hub",
        "Upload a captioner to the Hub in one commit: weights, settings, tokenizer, code, ONNX export and model card.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the captioner's folder")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub; created if absent")
    parser.add_argument("--private", action="store_true", help="hide a new repository from others")
    parser.add_argument("--revision", metavar="BRANCH", help="upload to this branch; created if absent (default: main)")
    parser.add_argument("--commit-message", default="Upload captioner", metavar="TEXT")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and upload nothing")
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from transformers.utils import logging

        from showattend.hub.upload import files_to_share, share

        logging.disable_progress_bar()
        files = files_to_share(options.checkpoint, options.repo_id)
    if options.dry_run:
        sizes = {path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in files.items()}
        for path, size in sorted(sizes.items()):
            print(f"{size:>12,}  {path}")
        print(f"{sum(sizes.values()):>12,}  bytes in all would go to {options.repo_id}")
        return 0
    logging.enable_progress_bar()
    with parser.reporting(1):
        print(share(files, options.repo_id, options.private, options.revision, options.commit_message))
    return 0
