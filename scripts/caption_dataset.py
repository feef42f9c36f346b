"""`showattend caption-dataset`, from a clone."""

import sys

from showattend.commands.caption_dataset import main

if __name__ == "__main__":
    sys.exit(main())
