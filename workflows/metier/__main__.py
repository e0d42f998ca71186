"""`python -m metier` is the command `metier`."""

from metier.cli import main

if __name__ == "__main__":
    main()
