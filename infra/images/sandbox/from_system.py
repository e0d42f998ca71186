"""Write the sandbox image's root file system as a tar, made of this machine's own Python and shell tools.

Called by `infra/local/image.py`, or alone: `python3 from_system.py rootfs.tar` (`-`: standard output; `--digest`: a
digest of all that goes in; `--python`: which Python goes in). Hands on to nobody: the tar is what `docker import` takes. It needs Linux with glibc, no
registry and no root, and names no file that is not in the image. The same machine always writes the same bytes.
"""

import hashlib
import importlib.machinery
import importlib.util
import io
import marshal
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

NEEDED = "asyncio ctypes hashlib json re socket sqlite3 ssl venv zlib"
"""What sandboxed Python must be able to import; a system Python that cannot is not used."""

TOOLS = """
    [ awk base64 basename bash cat chmod cmp comm cp cut date dd df diff dirname du echo env expr false find fold grep
    gzip head hostname id join kill ln ls md5sum mkdir mktemp mv nl nproc od paste printenv printf ps pwd readlink
    realpath rm rmdir sed seq sh sha1sum sha256sum sleep sort split stat stty sum sync tail tar tee test timeout touch
    tr true truncate uname uniq wc which whoami xargs yes
"""
"""Shell tools taken along where this machine has them."""

RUNTIMES = ("libdl.so.2", "libgcc_s.so.1", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libutil.so.1")
"""Shared libraries that compiled Python packages may expect of every machine (manylinux), so that an image can be built on this one."""

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"

LEFT_OUT = {
    *("__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test"),
    *("tests", "tkinter", "turtledemo"),
}
"""Folders of the standard library that a sandbox has no use for."""

ACCOUNTS = {
    "/etc/passwd": "root:x:0:0:root:/work:/bin/sh\nsandbox:x:65534:65534:sandbox:/work:/bin/sh\n",
    "/etc/group": "root:x:0:\nsandbox:x:65534:\n",
}
USER_MERGE = ("bin", "sbin", "lib", "lib64")
"""Top folders that are links into /usr."""


@dataclass(frozen=True)
class Entry:
    """One file, folder or link of the image."""

    kind: bytes
    mode: int = 0o755
    data: bytes = b""
    link: str = ""


Tree = dict[str, Entry]


def tree() -> Tree:
    """Return the whole image: the interpreter, its library, shell tools, the shared libraries of all of these."""
    interpreter = Path(sys.executable).resolve()
    files = {str(path): path for path in (interpreter, *_library())}
    files |= _tools()
    files |= _shared_libraries([path for path in files.values() if _is_program(path)])
    files |= _runtimes(files)
    found = {_merged(place): _file(path) for place, path in files.items()}
    found |= {place: Entry(tarfile.REGTYPE, 0o644, text.encode()) for place, text in ACCOUNTS.items()}
    found |= _authorities()
    found |= {place: Entry(tarfile.SYMTYPE, link=str(interpreter)) for place in _python_names(interpreter)}
    found |= {f"/{name}": Entry(tarfile.SYMTYPE, link=f"usr/{name}") for name in USER_MERGE}
    return _folders(found) | found


def _library() -> Iterator[Path]:
    """Walk over the standard library's sources and extension modules."""
    for folder, inner, names in os.walk(sysconfig.get_path("stdlib")):
        inner[:] = [name for name in inner if name not in LEFT_OUT and not name.startswith("config-")]
        yield from (Path(folder, name) for name in names if name.endswith((".py", ".so")))


def _tools() -> dict[str, Path]:
    found = {name: shutil.which(name, path="/usr/bin:/bin") for name in TOOLS.split()}
    return {f"/usr/bin/{name}": Path(path).resolve() for name, path in found.items() if path}


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _shared_libraries(programs: list[Path]) -> dict[str, Path]:
    """Ask the dynamic loader which libraries these programs load, itself among them."""
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    places: list[str] = re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", listed, re.MULTILINE)
    return {place: Path(place).resolve() for place in places}


def _runtimes(files: dict[str, Path]) -> dict[str, Path]:
    """Find the language runtimes beside the C library, where this machine has them."""
    folders = {Path(place).parent for place in files if Path(place).name.startswith("libc.so")}
    found = {str(folder / name): (folder / name).resolve() for folder in folders for name in RUNTIMES}
    return {place: path for place, path in found.items() if path.exists()}


def _authorities() -> Tree:
    """Take the certificate authorities that this machine trusts along, where its Python and other programs look for them."""
    known = ssl.get_default_verify_paths().openssl_cafile
    here = [Path(place) for place in (known, AUTHORITIES) if Path(place).is_file()]
    return {place: Entry(tarfile.REGTYPE, 0o644, here[0].read_bytes()) for place in (known, AUTHORITIES) if here}


def _merged(place: str) -> str:
    """Move what stands in a top folder that is a link to where that link leads."""
    return f"/usr{place}" if place.split("/")[1] in USER_MERGE else place


def _file(path: Path) -> Entry:
    """Read a file; its mode keeps nothing but whether it can be run, so no set-uid bit survives."""
    return Entry(tarfile.REGTYPE, 0o755 if os.access(path, os.X_OK) else 0o644, path.read_bytes())


def _python_names(interpreter: Path) -> set[str]:
    return {f"/usr/bin/{name}" for name in ("python", "python3", interpreter.name)} - {str(interpreter)}


def _folders(entries: Tree) -> Tree:
    """Return every folder above the entries, and the empty ones that a container mounts on or writes to."""
    above = {str(folder) for place in entries for folder in Path(place).parents if len(folder.parts) > 1}
    plain = {"/dev", "/proc", "/sys", *(f"/usr/{name}" for name in USER_MERGE)} | above
    return {place: Entry(tarfile.DIRTYPE) for place in plain} | {
        place: Entry(tarfile.DIRTYPE, 0o1777) for place in ("/tmp", "/work")
    }


def digest(entries: Tree) -> str:
    """Return a digest of all that goes in, and of this recipe."""
    total = hashlib.sha256(Path(__file__).read_bytes())
    for place, entry in sorted(entries.items()):
        total.update(f"{place} {entry.kind!r} {entry.mode} {entry.link} {len(entry.data)}\n".encode())
        total.update(entry.data)
    return total.hexdigest()


def compiled(entries: Tree) -> Tree:
    """Return the bytecode of the library: a read-only root could not keep it, and each start would compile anew.

    The files are of the kind that is never checked against the source (PEP 552), so that no time stamp matters.
    """
    sys.dont_write_bytecode = True
    found: Tree = {}
    for place, entry in entries.items():
        if place.endswith(".py"):
            code = importlib.machinery.SourceFileLoader("module", place).get_code("module")
            head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(entry.data)
            cached = importlib.util.cache_from_source(place)
            found[cached] = Entry(tarfile.REGTYPE, 0o644, head + marshal.dumps(code))
    return _folders(found) | found


def write(entries: Tree, target: BinaryIO) -> None:
    """Write the tar: sorted, owned by root, without times."""
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for place, entry in sorted(entries.items()):
            head = tarfile.TarInfo(place.lstrip("/"))
            head.type, head.mode, head.size, head.linkname = entry.kind, entry.mode, len(entry.data), entry.link
            archive.addfile(head, io.BytesIO(entry.data))


def _best_interpreter() -> str:
    """Prefer the system's Python to whichever runs this: its libraries lie where every program looks for them."""
    own = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    for candidate in (Path("/usr/bin/python3"), own):
        program = f"import {NEEDED.replace(' ', ', ')}"
        if candidate.exists() and subprocess.run([candidate, "-I", "-c", program], check=False).returncode == 0:
            return str(candidate.resolve())
    sys.exit(f"No Python here can import all of: {NEEDED}.")


def main() -> None:
    """Write the tar, or print the digest, as the interpreter that goes into the image."""
    best = _best_interpreter()
    if Path(sys.executable).resolve() != Path(best):
        os.execv(best, [best, "-I", __file__, *sys.argv[1:]])
    (argument,) = sys.argv[1:] or ["-"]
    if argument == "--python":
        print(best)
        return
    entries = tree()
    if argument == "--digest":
        print(digest(entries))
        return
    with sys.stdout.buffer if argument == "-" else Path(argument).open("wb") as target:
        write(entries | compiled(entries), target)


if __name__ == "__main__":
    main()
