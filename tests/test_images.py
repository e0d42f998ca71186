"""The sandbox image, however it was made: of this machine's own Python, or by the Dockerfile. Both are held to the same checks.

Not here: pulling the Dockerfile's public base, which needs a registry; its lines run on the other image as a base.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metier_infra.settings import SandboxSettings
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.limits import USERS
from metier_tools.sandbox import Request

RECIPE = Path(__file__).parents[1] / "infra" / "images" / "sandbox"
LIBRARY = (
    "argparse asyncio base64 bisect collections csv ctypes datetime decimal difflib email fractions functools hashlib heapq html http "
    "io itertools json logging lzma math multiprocessing operator os pathlib pickle random re sched select shutil socket sqlite3 ssl "
    "statistics string struct subprocess tempfile textwrap threading time tomllib unittest urllib.parse uuid xml.etree.ElementTree zipfile zlib"
)
LOOKS = f"""
import importlib, json, os, stat, sys
found = {{"setuid": [], "writable": [], "capable": []}}
for top, folders, names in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(top, name) not in ("/proc", "/sys", "/dev", "/tmp")]
    for name in names:
        path = os.path.join(top, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and mode & 0o6000: found["setuid"].append(path)
        if stat.S_ISREG(mode) and mode & 0o002: found["writable"].append(path)
        try:
            if "security.capability" in os.listxattr(path, follow_symlinks=False): found["capable"].append(path)
        except OSError: pass
missing = []
for name in {LIBRARY!r}.split():
    try: importlib.import_module(name)
    except ImportError: missing.append(name)
try: open("/work/x", "w"); root = "writable"
except OSError as error: root = error.strerror
print(json.dumps({{**found, "missing": missing, "root": root, "user": [os.getuid(), os.getgid(), os.getgroups()], "version": sys.version_info[:2],
    "pip": importlib.util.find_spec("pip") is not None, "programs": [p for p in ("su", "sudo", "mount", "apt", "pip") if any(os.access(f"{{d}}/{{p}}", os.X_OK) for d in ("/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin"))]}}))
"""


@pytest.fixture(scope="module", params=["from_system", "dockerfile"])
def image(request: pytest.FixtureRequest) -> Iterator[str]:
    own = os.environ["METIER_SANDBOX_IMAGE"]
    if request.param == "from_system":
        yield own
        return
    tag = f"metier-test:dockerfile-{os.getpid()}"
    words = ["docker", "build", "--quiet", "--network", "none", "--build-arg", f"BASE={own}", "--tag", tag, str(RECIPE)]
    subprocess.run(words, check=True, capture_output=True, env=os.environ | {"DOCKER_BUILDKIT": "0"})
    yield tag
    subprocess.run(["docker", "rmi", "--force", tag], check=True, capture_output=True)


def test_an_image_has_a_whole_python_and_no_way_to_become_more(image: str) -> None:
    sandbox = DockerSandbox(SandboxSettings.model_validate({"image": image, "pool": 0, "limit": 1}))
    try:
        sandbox.check()
        with sandbox.hold("looks", 20) as held:
            outcome = held.run(Request("python", LOOKS, 60))
            assert outcome.status == "ok", outcome.stderr
            assert held.image.startswith("sha256:")
    finally:
        sandbox.close()
    seen = json.loads(outcome.stdout)
    assert {name: seen[name] for name in ("setuid", "writable", "capable", "missing", "pip")} == {
        "setuid": [], "writable": [], "capable": [], "missing": [], "pip": False,
    }  # fmt: skip
    assert seen["root"] == "Read-only file system"
    assert seen["user"][0] in USERS
    assert seen["user"][1:] == [65534, [65534]]
    assert seen["version"] >= [3, 9]


def test_an_image_runs_as_nobody_even_without_us(image: str) -> None:
    said = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Config.User}}", image],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.strip() == "65534:65534"
