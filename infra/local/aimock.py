"""The public mock server that speaks the providers' wire formats, installed once and kept in the cache folder.

Called by the fixture `aimock` of the tests, and by people: `python3 infra/local/aimock.py --port 4010 --fixtures FOLDER`. Its pin is
`aimock/package-lock.json`. This process becomes the server: whoever started it ends it by its id.
"""

import os
import sys
from typing import NoReturn

import install
from say import StackError


def main() -> NoReturn:
    """Become the server, with the arguments given."""
    try:
        command = install.aimock()
    except StackError as error:
        sys.exit(f"aimock: {error}")
    os.execv(command[0], [*command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
