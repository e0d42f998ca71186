"""The folder for files that are too large to travel inside a result."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from metier.doctor.case import Case
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, warning

LITTLE, NOTHING = 1 << 30, 64 << 20
"""Bytes that are free. The second is what one call's files may come to."""


def examine(case: Case) -> list[Finding]:
    """See `Part`. Nothing is made: the folder is, when the first file comes."""
    folder = case.config.tools.blobs
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return [
        writable(folder, there, may=there.is_dir() and os.access(there, os.W_OK)),
        room(shutil.disk_usage(there).free),
    ]


def writable(folder: Path, there: Path, *, may: bool) -> Finding:
    """What to think of the folder; `there` is as much of it as exists."""
    if may:
        return ok(
            "blobs.folder", f"{folder} can be written" + ("" if there == folder.absolute() else ", once it is made")
        )
    return error(
        "blobs.folder",
        f"{there} cannot be written, and METIER_TOOL_BLOBS is {folder}",
        "name a folder that agents and tool runners share, and let this user write there",
    )


def room(free: int) -> Finding:
    """What to think of the space that is left on its disk; bytes."""
    has = f"{free / 2**30:,.1f} GiB are free"
    if free < NOTHING:
        return error(
            "blobs.space",
            has,
            "make room on the disk of METIER_TOOL_BLOBS: `metier blobs prune` does, where the files are old",
        )
    return warning("blobs.space", has, "make room, or have an eye on it") if free < LITTLE else ok("blobs.space", has)


PART = Part(
    "blobs",
    ("blobs.folder", "blobs.space"),
    examine,
    frozenset({"agent", "tools"}),
    unneeded=lambda case: "it is looked at where the roles run" if case.before_install else "",
    mend="see whether the folder's file system answers",
)
