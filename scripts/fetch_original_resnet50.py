"""`showattend fetch-original-resnet50`, from a clone."""

import sys

from showattend.commands.fetch_original_resnet50 import main

if __name__ == "__main__":
    sys.exit(main())
