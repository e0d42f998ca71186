"""Arrays in JSON: base64 of little-endian numbers, so that they come back the same to the bit. `learned` writes and `router_files` reads them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from metier_workflows.choosing.matrix import Floats


def packed(array: Floats) -> dict[str, Any]:
    """The array as JSON."""
    return {"shape": array.shape, "data": base64.b64encode(array.astype("<f8").tobytes()).decode()}


def unpacked(stored: dict[str, Any]) -> Floats:
    """The array of what `packed` gave. Raises `KeyError`, `TypeError` or `ValueError` where that is something else."""
    read = np.frombuffer(base64.b64decode(stored["data"], validate=True), "<f8")
    return read.astype(np.float64).reshape([int(side) for side in stored["shape"]])
