"""`showattend push-to-hub`, from a clone."""

from showattend.commands.push_to_hub import main

if __name__ == "__main__":
    raise SystemExit(main())
