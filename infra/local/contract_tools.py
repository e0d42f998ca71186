"""AsyncAPI's own parser and a Kafka client for Node, installed once and kept in the cache folder.

Called by the fixture `contract_tools` of the tests: it prints a Node, and the folder of packages. Its pin is `contracts/package-lock.json`.
"""

import sys

import install
from say import StackError


def main() -> None:
    """Print where they are, installed now if they were not."""
    try:
        program, packages = install.contract_tools()
    except StackError as error:
        sys.exit(f"contract_tools: {error}")
    sys.stdout.write(f"{program}\n{packages}\n")


if __name__ == "__main__":
    main()
