"""The helm that renders the chart, built once from its pinned source and kept in the cache folder.

Called by the chart's tests, and by people: `python3 infra/local/helm.py template metier helm/metier -f …`. Hands on to `kubetools`.
"""

import os
import subprocess
import sys

import kubetools
import state
from say import StackError


def main() -> int:
    """Run helm with the arguments given, with folders of its own in place of those under the home folder."""
    homes = {f"HELM_{name}_HOME": str(state.CACHE / "helm" / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    try:
        program = kubetools.tools("lint")["helm"]
    except StackError as error:
        print(f"helm: {error}", file=sys.stderr)
        return 1
    return subprocess.run([program, *sys.argv[1:]], env={**os.environ, **homes}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
