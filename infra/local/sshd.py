"""An SSH server for one user without rights, who may only forward. Called by `tests/access`: `python3 infra/local/sshd.py FOLDER PORT`.

FOLDER holds `host` and `host.pub` (the server's key pair) and `user.pub` (whose key lets in). This process becomes the server, under `nobody`
where it is root: whoever started it ends it by its id.
"""

import os
import pwd
import sys
from pathlib import Path
from typing import NoReturn

import install
from say import StackError

_SETTINGS = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM yes
AllowStreamLocalForwarding yes
"""


def main() -> NoReturn:
    """Become the server."""
    folder, port = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    try:
        program, libraries = install.sshd()
    except StackError as error:
        sys.exit(f"sshd: {error}")
    settings = folder / "sshd.conf"
    settings.write_text(_SETTINGS.format(port=port, folder=folder))
    if os.geteuid() == 0:
        _become_nobody(folder)
    os.execve(program, [program, "-D", "-e", "-f", str(settings)], {**os.environ, "LD_LIBRARY_PATH": libraries})


def _become_nobody(folder: Path) -> None:
    user = pwd.getpwnam("nobody")
    os.chown(folder / "host", user.pw_uid, user.pw_gid)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


if __name__ == "__main__":
    main()
