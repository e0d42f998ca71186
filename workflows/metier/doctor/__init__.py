"""Is this installation as Métier needs it? What `metier doctor` looks at, and what it makes of what it sees.

`cli_doctor` calls `examination`, which runs the parts side by side. A part is a module: its `examine` looks, by the adapters' `…_look` modules, and
its `findings` decide, as pure functions, from what was seen.
"""
