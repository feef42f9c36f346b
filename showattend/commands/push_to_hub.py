"""Share a captioner on the Hub: `scripts/push_to_hub.py CHECKPOINT REPO_ID`."""

import argparse
import sys

from transformers.utils import logging

from showattend.hub.upload import files_to_share, share


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Upload a captioner to the Hub in one commit: weights, settings, tokenizer, code and model card."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the captioner's folder")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub; made if absent")
    parser.add_argument("--private", action="store_true", help="hide a new repository from others")
    parser.add_argument("--revision", metavar="BRANCH", help="upload to this branch; made if absent (default: main)")
    parser.add_argument("--commit-message", "--commit_message", default="Upload captioner", metavar="TEXT")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="list what would go, and upload nothing")
    options = parser.parse_args()
    logging.disable_progress_bar()
    try:
        files = files_to_share(options.checkpoint, options.repo_id)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if options.dry_run:
        sizes = {path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in files.items()}
        for path, size in sorted(sizes.items()):
            print(f"{size:>12,}  {path}")
        print(f"{sum(sizes.values()):>12,}  bytes in all would go to {options.repo_id}")
        return
    logging.enable_progress_bar()
    try:
        print(share(files, options.repo_id, options.private, options.revision, options.commit_message))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
