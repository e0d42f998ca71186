"""A control plane of Kubernetes on this machine: the real API server, controllers and scheduler, and nodes that only pretend to run pods.

Called by the tests in `tests/kube`, and by people: `python3 infra/local/cluster.py run -- kubectl get nodes`. Hands on to `kubetools` for
the programs, to `control_plane` for what each is told, and to `lifecycle` to start and stop them. Everything lives in one state folder,
which is emptied at the end. What it cannot show: the pulling of images, network policies at work, containers and their probes.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import kubetools
import lifecycle
import ports
import process
from control_plane import NODES, ControlPlane
from say import StackError
from state import REPOSITORY, State


@contextmanager
def cluster(state: State) -> Generator[dict[str, str]]:
    """Run a control plane, and give the environment of a command that talks to it; afterwards no process and no file is left."""
    programs = kubetools.tools("lint", "cluster")
    with state.locked():
        etcd = ports.draw(())
        plane = ControlPlane(state, programs, etcd=etcd, api=ports.draw((etcd,)), token=secrets.token_hex(24))
        _empty(plane)
        try:
            _start(plane)
            yield _environment(plane, programs)
        finally:
            _empty(plane)


def _start(plane: ControlPlane) -> None:
    _make_keys(plane.keys)
    plane.write_files()
    etcd, apiserver, *others = plane.parts()
    lifecycle.start([etcd])
    lifecycle.start([apiserver])
    for name in NODES:
        plane.add_node(name)
    lifecycle.start(others)


def _empty(plane: ControlPlane) -> None:
    """Stop what runs here, who needs others first, and remove all but the lock."""
    etcd, apiserver, *others = plane.parts()
    for those in (others, [apiserver], [etcd]):
        lifecycle.stop(those)
    for path in plane.state.root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _make_keys(folder: Path) -> None:
    """Make the key pair by which the tokens of service accounts are signed and read."""
    if not shutil.which("openssl"):
        raise StackError("A cluster needs the program openssl to make its keys: please install it.")
    private, public = folder / "accounts.key", folder / "accounts.pub"
    process.run(["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(private)])
    process.run(["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)])


def _environment(plane: ControlPlane, programs: Mapping[str, Path]) -> dict[str, str]:
    """Return the variables for kubectl and helm, which would else write below the home folder, and their short names first on the path."""
    short = plane.state.folder("bin")
    for name, program in programs.items():
        (short / name).symlink_to(program)
    homes = {
        f"HELM_{name}_HOME": str(plane.state.folder("helm") / name.lower()) for name in ("CACHE", "CONFIG", "DATA")
    }
    path = f"{short}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    own = {"KUBECONFIG": str(plane.kubeconfig), "KUBECACHEDIR": str(plane.state.folder("kubectl"))}
    return {**os.environ, **homes, **own, "PATH": path}


def main() -> int:
    """Run one command on a cluster of its own, and exit as it did."""
    parser = argparse.ArgumentParser(prog="cluster.py", description=str(__doc__).partition("\n")[0])
    run = parser.add_subparsers(required=True, metavar="run").add_parser(
        "run", help="run a command on a cluster of its own"
    )
    run.add_argument("--state", type=Path, default=REPOSITORY / ".metier/cluster", help="folder of this cluster")
    run.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    return process.carry_out("cluster", lambda: _run(State(options.state), options.command))


def _run(state: State, words: Sequence[str]) -> int:
    with cluster(state) as environment:
        program = shutil.which(words[0], path=environment["PATH"]) or words[0]
        return subprocess.run([program, *words[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
