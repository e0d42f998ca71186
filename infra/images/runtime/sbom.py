"""Write what an image is made of, as CycloneDX JSON: its Python packages, Python itself, and the base's Debian packages.

The Dockerfile runs it, in the build stage: `sbom.py INTERPRETER PYPROJECT FILE`. The Python packages are what the tool of the
CycloneDX project finds in the environment; the rest is added here.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

VERSION = "1.6"
DEBIAN = Path("/var/lib/dpkg/status")


def environment(interpreter: str, project: str) -> dict[str, Any]:
    """Return the list of an environment's packages, under the project that they are there for; that it is CycloneDX is tested (`tests/images`), and not here."""
    tool = str(Path(sys.executable).with_name("cyclonedx-py"))
    options = ["--output-reproducible", "--no-validate", "--spec-version", VERSION, "--pyproject", project]
    done = subprocess.run([tool, "environment", *options, interpreter], check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def system() -> Iterator[dict[str, str]]:
    """Return what lies under the environment: the interpreter, and the packages that Debian's own list names."""
    yield _component("application", "python", platform.python_version(), "pkg:generic/python")
    for stanza in DEBIAN.read_text().split("\n\n") if DEBIAN.exists() else ():
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if not line.startswith(" ") and ": " in line)
        if "Package" in fields:
            yield _component("library", fields["Package"], fields["Version"], f"pkg:deb/debian/{fields['Package']}")


def _component(kind: str, name: str, version: str, place: str) -> dict[str, str]:
    address = f"{place}@{quote(version, safe='')}"
    return {"type": kind, "name": name, "version": version, "purl": address, "bom-ref": address}


def main() -> None:
    """Write the file."""
    interpreter, project, target = sys.argv[1:]
    found = environment(interpreter, project)
    found["components"] += system()
    Path(target).write_text(json.dumps(found, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
