"""A typed Python function as a program of its own, for the sandbox.

`declare.tool` calls it; what it makes reads the arguments as one JSON object from standard input and prints what the function returns.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import symtable
import textwrap
from collections.abc import Iterator
from types import FunctionType

_SITE = {"copyright", "credits", "exit", "help", "license", "quit"}
"""Names that Python adds for people at a prompt; a sandboxed program has none of them."""
_KNOWN = frozenset(dir(builtins)) - _SITE
_END = """

def __run():
    import {modules}
    value = {call}
    print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

__run()
"""


def program_of(function: FunctionType) -> str:
    """The program that calls this function.

    Raises:
        ValueError: the function is not written with def, has other decorators, or needs a name from outside itself.
    """
    definition = _definition(function)
    _strip(definition)
    bare = ast.unparse(definition)
    if outside := _outside(bare):
        names = ", ".join(sorted(outside))
        raise ValueError(
            f"it uses {names} from outside itself, which the sandbox does not have: import or define that inside the "
            "function, or declare kind='function' to run it, trusted, in the tool runner's process"
        )
    call = f"{function.__name__}(**json.loads(sys.stdin.buffer.read()))"
    if inspect.iscoroutinefunction(function):
        return bare + _END.format(modules="asyncio, json, sys", call=f"asyncio.run({call})")
    return bare + _END.format(modules="json, sys", call=call)


def _definition(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef:
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        (found,) = (one for one in parsed if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError("its source cannot be read; a sandboxed function stands in a file, with def") from error
    if len(found.decorator_list) > 1 or hasattr(function, "__wrapped__"):
        raise ValueError("it has another decorator, which would be lost in the sandbox: call that inside the function")
    found.decorator_list = []
    return found


def _strip(definition: ast.AST) -> None:
    """Take annotations away, which name types from outside. A class keeps those of its fields: there they are part of the program."""
    fields = {id(line) for node in ast.walk(definition) if isinstance(node, ast.ClassDef) for line in node.body}
    for node in ast.walk(definition):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign) and id(node) not in fields:
            node.annotation = ast.Constant(None)


def _outside(program: str) -> set[str]:
    """The names that a program uses and does not have: globals, and variables of a function around it."""
    module = symtable.symtable(program, "tool", "exec")
    own = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned()}
    used = {symbol.get_name() for scope in _scopes(module) for symbol in scope.get_symbols() if symbol.is_global()}
    return used - own - _KNOWN


def _scopes(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield scope
    for child in scope.get_children():
        yield from _scopes(child)
