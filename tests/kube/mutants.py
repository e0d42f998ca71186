"""Harm done to the chart's templates, and for each the rule that must refuse what then renders.

Used by `test_policies`. A mutant is an edit of every template that its pattern matches: one that matches nothing is a defect of this table,
and its test fails.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .kit import CHART


@dataclass(frozen=True)
class Mutant:
    """One edit: what it does, the rule that must refuse it, what is replaced by what; a pattern that is empty adds a file."""

    does: str
    rule: str
    pattern: str
    becomes: str = ""

    def of_the_chart(self, folder: Path) -> Path:
        """Return a copy of the chart with this harm done to it."""
        copy = folder / "metier"
        shutil.copytree(CHART, copy)
        if not self.pattern:
            (copy / "templates/mutant.yaml").write_text(self.becomes)
            return copy
        harmed = [self._harm(path) for path in (copy / "templates").rglob("*") if path.suffix in {".yaml", ".tpl"}]
        assert any(harmed), f"nothing in the templates is like {self.pattern!r}: give this mutant another pattern"
        return copy

    def _harm(self, template: Path) -> int:
        text, count = re.subn(self.pattern, self.becomes, template.read_text(), flags=re.MULTILINE)
        template.write_text(text)
        return count


_ROLE = """apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: mutant
  labels: {{- include "metier.labels" (dict "root" $ "component" "mutant") | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:serviceaccounts"}]
"""

MUTANTS = (
    Mutant("lets root in", "restricted", r"runAsNonRoot: true", "runAsNonRoot: false"),
    Mutant("takes no user at all", "hardened", r"^ *runAsUser: .*\n"),
    Mutant("drops the seccomp profile", "restricted", r"^ *seccompProfile: .*\n"),
    Mutant(
        "lets a process gain rights", "restricted", r"allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"
    ),
    Mutant("keeps the capabilities", "restricted", r"drop: \[ALL\]", "drop: []"),
    Mutant("adds a capability", "restricted", r"drop: \[ALL\]", "drop: [ALL], add: [SYS_ADMIN]"),
    Mutant("is privileged", "restricted", r"allowPrivilegeEscalation: false", "privileged: true"),
    Mutant("is in the node's network", "restricted", r"enableServiceLinks: false", "hostNetwork: true"),
    Mutant("takes a port of the node", "restricted", r"containerPort: ", "hostPort: 8080, containerPort: "),
    Mutant(
        "lets the root file system be written",
        "hardened",
        r"readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
    ),
    Mutant(
        "mounts the token", "powerless", r"automountServiceAccountToken: false", "automountServiceAccountToken: true"
    ),
    Mutant("gives rights in the cluster", "powerless", "", _ROLE),
    Mutant("mounts a folder of the node", "node_untouched", r"emptyDir: \{.*?\}", "hostPath: {path: /var/lib}"),
    Mutant("mounts the engine of the node", "node_untouched", r"mountPath: /tmp", "mountPath: /var/run/docker.sock"),
    Mutant("has no liveness probe", "probed", r"livenessProbe:", "x-liveness:"),
    Mutant("has no readiness probe", "probed", r"readinessProbe:", "x-readiness:"),
    Mutant("has no startup probe", "probed", r"startupProbe:", "x-startup:"),
    Mutant("lives only while its dependencies do", "probed", r"/livez", "/readyz"),
    Mutant("has no limits", "bounded", r"resources: .*", "resources: {}"),
    Mutant("takes the latest image", "fixed_images", r"\.Chart\.AppVersion", '"latest"'),
    Mutant("forgets the digest", "digests", r"@\{\{", ":{{"),
    Mutant("says nobody manages it", "labelled", r"^ *app\.kubernetes\.io/managed-by: .*\n"),
    Mutant(
        "calls all components the same",
        "selected",
        r"app\.kubernetes\.io/component: .*",
        "app.kubernetes.io/component: same",
    ),
    Mutant(
        "is killed before it has drained",
        "patient",
        r"terminationGracePeriodSeconds: .*",
        "terminationGracePeriodSeconds: 30",
    ),
    Mutant("leaves the time of its end to the cluster", "patient", r"^ *terminationGracePeriodSeconds: .*\n"),
    Mutant("has no disruption budget", "evictable", r"kind: PodDisruptionBudget", "kind: ConfigMap"),
    Mutant("lets no node be drained", "evictable", r"maxUnavailable: .*", "minAvailable: 1"),
    Mutant("puts all pods on one node", "spread", r"topologySpreadConstraints:", "x-spread:"),
    Mutant("gives the orchestrator the tools' queue", "needed_secrets", r"METIER_POSTGRES_URL", "METIER_REDIS_URL"),
    Mutant("writes a key into the manifest", "hidden_secrets", r"METIER_LOG_LEVEL", "METIER_GRANT_KEY"),
    Mutant("lets all traffic out", "fenced", r"^( *)egress:.*\n", r"\g<0>\1  - {}\n"),
    Mutant("forgets one direction", "fenced", r"policyTypes: \[Ingress, Egress\]", "policyTypes: [Ingress]"),
    Mutant(
        "gives all objects the same name",
        "unique",
        r"\$whole := .* -\}\}",
        '$whole := include "metier.fullname" .root -}}',
    ),
    Mutant("retries in the same pod", "finite", r"restartPolicy: Never", "restartPolicy: OnFailure"),
    Mutant("leaves its Jobs for ever", "finite", r"^ *ttlSecondsAfterFinished: .*\n"),
    Mutant("names an account that is not there", "grounded", r"kind: ServiceAccount", "kind: ConfigMap"),
    Mutant("stays as it is when its files change", "grounded", r"checksum/", "sum-of/"),
)
