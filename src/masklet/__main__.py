"""`python -m masklet` is the command `masklet`."""

from __future__ import annotations

from masklet.apps.cli import main

if __name__ == "__main__":
    main()
