"""`showattend mix-checkpoints`, from a clone."""

from showattend.commands.mix_checkpoints import main

if __name__ == "__main__":
    main()
