"""The local stack: Kafka, Postgres, Redis and a container engine, without containers, ports or state of their own.

Called by people, by `make` and by CI: `python3 infra/local/stack.py up`. Hands on to `services` (what there is),
`lifecycle` (start and stop), `roles` and `image`. Everything lives in one state folder; `down` leaves no process.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import image
import lifecycle
import process
import ready
import roles
import services
from say import StackError, say
from services import Service
from state import REPOSITORY, State

IMAGE_VARIABLE = "METIER_SANDBOX_IMAGE"
KEY_VARIABLE = "METIER_GRANT_KEY"


def up(options: argparse.Namespace) -> int:
    """Bring up the services, and on top of them the roles if asked; what is up already stays."""
    state = State(options.state)
    with state.locked():
        _bring_up(state, options)
    return 0


def _bring_up(state: State, options: argparse.Namespace) -> list[Service]:
    """Start what is missing and write the env file; return what was started. On any failure stop exactly that."""
    busy = [one.name for one in services.every(state).values() if process.running(one.pidfile)]
    state.assign_ports(options.ports, busy, os.environ)
    wanted = [one for name, one in services.every(state).items() if name in options.only]
    given = {one.name: address for one in wanted if (address := services.elsewhere(one, os.environ))}
    for name, address in given.items():
        say(name, f"using {address}")
    started = lifecycle.start([one for one in wanted if one.name not in given])
    try:
        values = _write_env(state, given)
        if options.roles:
            roles.prepare(options.program, values)
            started += lifecycle.start(roles.every(state, options.program, values))
    except BaseException:
        _take_down(state, started)
        raise
    return started


def _write_env(state: State, given: Mapping[str, str]) -> dict[str, str]:
    """Record where each service that is up can be reached, the sandbox image, and the key that signs tool calls."""
    ours = {name: one.url for name, one in services.every(state).items() if process.running(one.pidfile)}
    urls = {**ours, **given}
    values = {variable: urls[name] for name, variable in services.VARIABLES.items() if name in urls}
    if "docker" in urls:
        values[IMAGE_VARIABLE] = _sandbox_image(urls["docker"])
    if "redis" in urls:
        values[KEY_VARIABLE] = os.environ.get(KEY_VARIABLE) or state.secret()
    state.write_env(values)
    return values


def _sandbox_image(host: str) -> str:
    """Return the image that somebody chose, or ours, made if need be."""
    given = os.environ.get(IMAGE_VARIABLE, "")
    return given if given and not given.startswith(f"{image.NAME}:") else image.ensure(host)


def _take_down(state: State, running: Sequence[Service]) -> None:
    """Stop roles before the services they use."""
    lifecycle.stop([one for one in running if one.name in roles.ROLES])
    lifecycle.stop([one for one in running if one.name not in roles.ROLES])
    if not any(process.running(one.pidfile) for one in services.every(state).values()):
        state.write_env({})


def down(options: argparse.Namespace) -> int:
    """Stop everything of this stack, and remove its data if asked."""
    state = State(options.state)
    if not state.root.exists():
        return 0
    with state.locked():
        _take_down(state, _everything(state))
        if options.wipe:
            state.wipe()
    return 0


def _everything(state: State) -> list[Service]:
    return [*services.every(state).values(), *roles.every(state, roles.PROGRAM, {})]


def run(options: argparse.Namespace) -> int:
    """Bring up what is missing, run a command with its environment, stop what was started; exit as the command did."""
    if not shutil.which(options.command[0]):
        raise StackError(f"There is no program {options.command[0]} to run.")
    state = State(options.state)
    os.environ[services.STATE_VARIABLE] = str(state.root)
    with state.locked():
        started = _bring_up(state, options)
        values = _read_env(state)
    try:
        return _run_to_the_end(options.command, {**os.environ, **values})
    finally:
        with state.locked():
            _take_down(state, started)


def _run_to_the_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and return its exit code; when we are told to end, so is it, and its way of ending is awaited."""
    with subprocess.Popen(command, env=environment) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the terminal has told the command too
            code = child.wait()
        except SystemExit:
            _end(child)
            raise
    return code if code >= 0 else 128 - code


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()


def status(options: argparse.Namespace) -> int:
    """Say of each service and each role whether it is up."""
    state = State(options.state)
    for one in _everything(state) if state.root.exists() else ():
        pid = process.running(one.pidfile)
        if pid or one.name not in roles.ROLES:
            print(f"{one.name:<12} {_condition(one, pid)}")
    return 0


def _condition(one: Service, pid: int | None) -> str:
    if pid:
        return f"up on {one.url} (pid {pid})" if ready.answers(one.ready) else f"not answering (pid {pid})"
    given = services.elsewhere(one, os.environ) if one.name in services.VARIABLES else None
    return f"elsewhere: {given}" if given else "down"


def env(options: argparse.Namespace) -> int:
    """Print `export` lines for the shell: eval "$(python3 infra/local/stack.py env)"."""
    file = State(options.state).env_file
    if not file.exists():
        raise StackError("Nothing is up in this state folder: run `up` first.")
    sys.stdout.write(file.read_text())
    return 0


def start(options: argparse.Namespace) -> int:
    """Start one service again, where it was."""
    return _with_one(options, lambda one: lifecycle.start([one]))


def stop(options: argparse.Namespace) -> int:
    """Stop one service or role, leaving the others."""
    return _with_one(options, lambda one: lifecycle.stop([one]))


def kill(options: argparse.Namespace) -> int:
    """End one service or role with SIGKILL, as a crash would."""
    return _with_one(options, lambda one: process.kill(one.pidfile))


def _with_one(options: argparse.Namespace, action: Callable[[Service], object]) -> int:
    state = State(options.state)
    with state.locked():
        known = {one.name: one for one in [*services.every(state).values(), *_roles_in(state, options)]}
        action(known[options.service])
    return 0


def _roles_in(state: State, options: argparse.Namespace) -> list[Service]:
    return roles.every(state, options.program, _read_env(state))


def make_image(options: argparse.Namespace) -> int:
    """Make the sandbox image if the engine lacks it, and print its tag."""
    state = State(options.state)
    with state.locked():
        private = services.docker(state)
        host = services.elsewhere(private, os.environ) or private.url
        if host == private.url and not process.running(private.pidfile):
            raise StackError("No container engine is up: run `up --only docker` first.")
        print(image.ensure(host))
    return 0


def _read_env(state: State) -> dict[str, str]:
    text = state.env_file.read_text() if state.env_file.exists() else ""
    pairs = (shlex.split(line)[1].partition("=") for line in text.splitlines())
    return {name: value for name, _, value in pairs}


def _only(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in services.VARIABLES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no service {', '.join(unknown)}: there are {', '.join(services.VARIABLES)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stack.py", description=str(__doc__).partition("\n")[0])
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--state", type=Path, default=REPOSITORY / ".metier", help="folder of this stack")
    shared.add_argument("--program", type=Path, default=roles.PROGRAM, help="what to run as `metier` for the roles")
    bringing = argparse.ArgumentParser(add_help=False)
    bringing.add_argument("--only", type=_only, default=list(services.VARIABLES), help="services, with commas between")
    bringing.add_argument("--ports", choices=("fixed", "auto"), help="well-known ports, or ones drawn once and kept")
    bringing.add_argument("--roles", action="store_true", help="start Métier's own processes too")
    single = argparse.ArgumentParser(add_help=False)
    single.add_argument("service", choices=(*services.VARIABLES, *roles.ROLES))

    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, action: Callable[[argparse.Namespace], int], *more: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[shared, *more], help=str(action.__doc__).partition("\n")[0])
        made.set_defaults(action=action)
        return made

    command("up", up, bringing)
    command("run", run, bringing).add_argument("command", nargs="+", help="after --")
    command("down", down).add_argument("--wipe", action="store_true", help="remove the data too")
    command("status", status)
    command("env", env)
    command("start", start, single)
    command("stop", stop, single)
    command("kill", kill, single)
    command("image", make_image)
    return parser


def main() -> int:
    """Run one command."""
    options = _parser().parse_args()
    return process.carry_out("stack", lambda: int(options.action(options)))


if __name__ == "__main__":
    sys.exit(main())
