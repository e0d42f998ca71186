"""What runs inside a sandbox container, as PID 1 and its forks. Standard library only: the sources are sent to `python3 -I -S -c`.

`program` makes the command line that `docker_sandbox` starts containers with; nothing here is imported there by name.
"""

from __future__ import annotations

from importlib import resources

PYTHON = "/usr/bin/python3"
"""Where an image must have Python for our PID 1."""
_MODULES = ("wire", "reset", "child", "pid1")
_BOOT = """
import sys
sources, sys.argv[1:] = sys.argv[1:], []
names = ["metier_tools.inside." + name for name in %r]
for name, source in zip(names, sources):
    module = sys.modules[name] = type(sys)(name)
    exec(compile(source, name, "exec"), module.__dict__)
for name in names:
    del sys.modules[name]
module.serve(sources[len(names):])
"""


def program(*, with_loopback: bool = False) -> list[str]:
    """The command line of PID 1; with the relay to the proxy's socket, where the network may be used."""
    names = (*_MODULES, "loopback") if with_loopback else _MODULES
    here = resources.files(__name__)
    sources = [(here / f"{name}.py").read_text(encoding="utf-8") for name in names]
    return [PYTHON, "-I", "-S", "-c", _BOOT % (_MODULES,), *sources]
