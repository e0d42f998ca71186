"""Take out of a base image what a running role has no use for, and compile the standard library, which a read-only root could not keep compiled.

The Dockerfile runs it, in the image. Debian's package managers and what changes users go, by the list of files that each
package brought, and out of Debian's own list of packages, so that what a scanner finds there is what there is.
"""

import compileall
import os
import py_compile
import re
import shutil
import stat
import sysconfig
from pathlib import Path

PACKAGES = ("apt", "dpkg", "login", "mount", "passwd", "perl-base")
"""Debian's packages that install software or change users."""

LIBRARY = ("ensurepip", "idlelib", "lib2to3", "test", "tkinter", "turtledemo")
"""Parts of the standard library that only people use."""

INSTALLERS = ("pip", "pip-*", "setuptools", "setuptools-*", "wheel", "wheel-*", "pkg_resources", "_distutils_hack")

NOT_FILES = ("dev", "proc", "sys")
OTHER_RIGHTS = stat.S_ISUID | stat.S_ISGID
DATABASE = Path("/var/lib/dpkg")
PROGRAMS = (Path("/bin"), Path("/sbin"), Path("/usr/bin"), Path("/usr/sbin"), Path("/usr/local/bin"))


def main() -> None:
    """Take out, then compile what stays."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in PACKAGES:
        _remove_package(name)
    for path in (*_installers(), *(library / name for name in LIBRARY)):
        _remove(path)
    for path in _with_other_rights():
        path.unlink()
    if not (library / "__pycache__").exists():
        compileall.compile_dir(
            library, quiet=2, workers=0, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    Path(__file__).unlink()


def _remove_package(name: str) -> None:
    listed, known = DATABASE / "info" / f"{name}.list", DATABASE / "status"
    if not listed.exists():
        return
    for place in map(Path, listed.read_text().splitlines()):
        if place.is_symlink() or place.is_file():
            place.unlink()
    stanzas = known.read_text().split("\n\n")
    known.write_text("\n\n".join(one for one in stanzas if not re.match(rf"Package: {re.escape(name)}\n", one)))
    for leftover in (DATABASE / "info").glob(f"{name}.*"):
        leftover.unlink()


def _installers() -> list[Path]:
    """Python's own installers, wherever this Python finds packages, and their commands."""
    packages = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    found = [path for folder in packages for pattern in INSTALLERS for path in folder.glob(pattern)]
    return found + [path for folder in PROGRAMS for path in folder.glob("pip*")]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _with_other_rights() -> list[Path]:
    """Programs that run as their owner or group, whoever starts them."""
    found: list[Path] = []
    for folder, inner, names in os.walk("/"):
        inner[:] = [name for name in inner if folder != "/" or name not in NOT_FILES]
        found += [path for path in (Path(folder, name) for name in names) if path.lstat().st_mode & OTHER_RIGHTS]
    return [path for path in found if path.is_file() and not path.is_symlink()]


if __name__ == "__main__":
    main()
