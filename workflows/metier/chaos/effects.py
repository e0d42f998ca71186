"""The tool whose effects are counted: a trusted function that tells the ledger of each time that it is carried out.

The tool runners of `metier chaos` load it by `METIER_TOOL_MODULES`; where the ledger is, `CHAOS_LEDGER` says: host:port.
"""

from __future__ import annotations

import json
import os
from http.client import HTTPConnection

from metier import tool

LEDGER = "CHAOS_LEDGER"


@tool(kind="function", timeout_s=30.0, risk="write")
def effect(key: str, token: str) -> str:
    """Carry out the effect of this key, and tell its receipt.

    Args:
        key: which effect it is.
        token: under which history of its run.
    """
    line = HTTPConnection(os.environ[LEDGER], timeout=20)
    try:
        line.request("POST", "/effects", json.dumps({"key": key, "token": token}))
        return line.getresponse().read().decode()
    finally:
        line.close()
