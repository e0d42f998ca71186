"""Secrets: where they are read, and that what a tool gives back does not show them. Not here: how they travel (test_execution)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_tools.vault import FolderVault, scrubber

SECRET = "s3cr3t/t0ken+value=="


def test_a_secret_is_a_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "TOKEN").write_text("value\n")
    vault = FolderVault(tmp_path)
    assert vault.value("TOKEN") == "value"
    (tmp_path / "TOKEN").write_text("rotated")
    assert vault.value("TOKEN") == "rotated"


@pytest.mark.parametrize("name", ["OTHER", "../TOKEN", "token", "", "TOKEN/..", "/etc/passwd", "BINARY", "FOLDER"])
def test_what_is_no_secret_has_no_value(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "TOKEN").write_text("value")
    (tmp_path / "inside" / "BINARY").write_bytes(b"\xff\xfe")
    (tmp_path / "inside" / "FOLDER").mkdir()
    assert FolderVault(tmp_path / "inside").value(name) is None
    assert FolderVault(None).value(name) is None


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"user:{SECRET}".encode()).decode(),
        base64.b64encode(f"a:{SECRET}:b".encode()).decode(),
        base64.urlsafe_b64encode(f"ab:{SECRET}".encode()).decode(),
    ],
)
def test_a_secret_is_hidden_however_it_is_written(shown: str) -> None:
    clean = scrubber([SECRET])(f"before {shown} after".encode(), False).decode()
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    assert "[secret]" in clean
    for part in (SECRET, shown):
        assert part not in clean


@pytest.mark.parametrize(
    "secret",
    [
        "two\nlines",
        'schlüssel "quoted"',
        "bell\x07",
        'a "quote"',
        "it's a quote",
        "schlüssel-ключ",
        "tab\tand\\slash",
        "a b/c&d=é",
    ],
)
def test_a_secret_is_hidden_in_what_programs_print_by_accident(secret: str) -> None:
    shown = [
        json.dumps({"key": secret}),
        json.dumps({"key": secret}, ensure_ascii=False),
        repr({"key": secret}),
        f"?key={quote(secret)}",
        urlencode({"key": secret}),
    ]
    for text in shown:
        clean = scrubber([secret])(text.encode(), False).decode()
        assert "[secret]" in clean, text
        assert len(clean) <= len("{'key': '[secret]'}"), clean


def test_a_secret_of_several_lines_is_hidden_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASCBKcwggSj\nshort\n-----END KEY-----"
    printed = "".join(f"{n}: {line}\n" for n, line in enumerate(key.splitlines()))
    assert scrubber([key])(printed.encode(), False).decode() == (
        "0: [secret]\n1: [secret]\n2: [secret]\n3: short\n4: [secret]\n"
    )


def test_a_secret_that_was_cut_off_is_hidden_as_far_as_it_is_there() -> None:
    scrub = scrubber([SECRET])
    assert scrub(b"x" * 10 + SECRET.encode()[:7], True) == b"x" * 10 + b"[secret]"
    assert scrub(b"ends with s3cr", False) == b"ends with s3cr"


def test_what_holds_no_secret_is_as_it_was() -> None:
    assert scrubber([])(b"text", True) == b"text"
    assert scrubber(["abc"])(b"abc", False) == b"abc"


@given(st.text(min_size=4, max_size=40), st.binary(max_size=60), st.binary(max_size=60))
def test_no_secret_survives_wherever_it_stands(secret: str, before: bytes, after: bytes) -> None:
    try:
        plain = secret.encode()
    except UnicodeEncodeError:
        return
    assert plain not in scrubber([secret])(before + plain + after, False) or plain in b"[secret]"
