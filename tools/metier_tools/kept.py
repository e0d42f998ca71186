"""Text of tools as it can be kept: in events, in the journal, in what a model reads.

`function_call` and `server_line` call it with what other people's code said.
"""

from __future__ import annotations

import re

_UNFIT = re.compile("[\0\ud800-\udfff]")


def kept(text: str, most: int) -> tuple[str, bool]:
    """The text without what UTF-8 or a database cannot hold (U+FFFD instead), its beginning of at most `most` bytes; whether it was cut."""
    whole = _UNFIT.sub("\ufffd", text[:most])
    fit = whole.encode()[:most].decode(errors="ignore")
    return fit, len(fit) < len(text)
