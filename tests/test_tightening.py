"""What a safety bundle demands of the sandbox is kept by the runner: of each limit the stricter, never a looser one, and never a shared container.

The sandbox is scripted; that a profile's limits hold in a real container is in test_docker_sandbox and the abuse tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metier_infra.blobs import FolderBlobs
from metier_infra.words import CallId, RunId, ToolCallId
from metier_tools.builtin import PYTHON
from metier_tools.declare import Arguments, from_model
from metier_tools.egress_rules import allowed
from metier_tools.execution import Execution, Needs, recipe_of
from metier_tools.profile import MIB, STRICT, Egress, Profile
from metier_tools.sandbox import PLAIN, Outcome, Request, ScriptedSandbox
from metier_tools.tightening import NOT_LIMITS, common_hosts, held_to, tightened
from metier_tools.tool import Hold, ToolCall, ToolResult
from metier_tools.toolbox import Function, Refusal, ServerTool, Tool, Toolbox, Written
from metier_tools.vault import FixedVault

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.sampled_from(["a.example.com", "example.com", "b.a.example.com", "other.org", "com"])
HOSTS = st.tuples(st.sampled_from(["", "*."]), NAMES, st.sampled_from(["", ":80", ":443", ":8443", ":080"])).map(
    "".join
)
EGRESS = st.none() | st.builds(
    Egress,
    hosts=st.lists(HOSTS, min_size=1, max_size=4).map(tuple),
    bytes=st.integers(1, MIB),
    private=st.booleans(),
)
PROFILES: st.SearchStrategy[Profile] = st.builds(
    Profile,
    name=st.sampled_from(["one", "two"]),
    version=st.integers(1, 3),
    image=st.sampled_from([None, "some:1"]),
    cpus=st.floats(0.1, 8),
    memory_bytes=st.integers(6 * MIB, 512 * MIB),
    pids=st.integers(4, 100),
    tmp_bytes=st.integers(1, MIB),
    tmp_inodes=st.integers(16, 1000),
    file_bytes=st.integers(1, MIB),
    open_files=st.integers(32, 300),
    longest_s=st.floats(0.1, 400),
    keep_bytes=st.integers(1, MIB),
    flood_bytes=st.integers(1, MIB),
    put_bytes=st.integers(1, MIB),
    take_bytes=st.integers(1, MIB),
    single_use=st.booleans(),
    egress=EGRESS,
)
SOME_HOSTS = st.lists(HOSTS, max_size=4).map(tuple)
ASKED = st.tuples(
    st.sampled_from(["a.example.com", "x.a.example.com", "example.com", "b.a.example.com", "y.b.a.example.com", "other.org", "z.other.org", "com"]),
    st.sampled_from([80, 443, 8443, 8080]),
)  # fmt: skip
NUMBERS = sorted(
    name
    for name, value in STRICT.model_dump().items()
    if isinstance(value, int | float) and name not in {"version", "single_use"}
)


@UNTIMED
@given(PROFILES, PROFILES, SOME_HOSTS)
def test_no_limit_is_ever_looser_than_either_profile_says(
    own: Profile, demanded: Profile, hosts: tuple[str, ...]
) -> None:
    made = tightened(own, demanded, hosts)
    for name in NUMBERS:
        assert getattr(made, name) == min(getattr(own, name), getattr(demanded, name)), name
    assert made.single_use == (own.single_use or demanded.single_use)
    assert (made.key, made.image) == (own.key, own.image)
    Profile.model_validate(made.model_dump())


def test_every_field_of_a_profile_is_among_those_that_the_property_above_looks_at() -> None:
    assert {*NUMBERS, "single_use", "egress"} | NOT_LIMITS == set(Profile.model_fields)


@UNTIMED
@given(PROFILES, PROFILES, SOME_HOSTS, ASKED)
def test_a_host_is_reached_exactly_where_the_tool_the_demanded_profile_and_the_bundle_all_let_it_through(
    own: Profile, demanded: Profile, hosts: tuple[str, ...], asked: tuple[str, int]
) -> None:
    made = tightened(own, demanded, hosts)

    def lets(egress: Egress | None) -> bool:
        return egress is not None and allowed(egress, *asked)

    listed = bool(hosts) and allowed(Egress(hosts=hosts), *asked)
    assert lets(made.egress) == (lets(own.egress) and lets(demanded.egress) and listed)
    if made.egress is not None and own.egress is not None and demanded.egress is not None:
        assert made.egress.bytes == min(own.egress.bytes, demanded.egress.bytes)
        assert made.egress.private == (own.egress.private and demanded.egress.private)


@UNTIMED
@given(PROFILES, PROFILES)
def test_a_profile_within_laxer_ones_stays_itself_so_that_its_warm_containers_serve_it(
    own: Profile, other: Profile
) -> None:
    made = tightened(own, other, own.egress.hosts if own.egress else ())
    hosts = made.egress.hosts if made.egress else ()
    assert tightened(made, own, hosts) == made
    assert tightened(made, other, hosts) == made
    assert tightened(STRICT, STRICT, ()) == STRICT


@pytest.mark.parametrize(
    ("some", "others", "both"),
    [
        (("*.example.com",), ("api.example.com",), ("api.example.com",)),
        (("api.example.com",), ("*.example.com",), ("api.example.com",)),
        (("*.example.com",), ("example.com",), ()),
        (("*.example.com",), ("*.eu.example.com",), ("*.eu.example.com",)),
        (("*.example.com",), ("evilexample.com",), ()),
        (("*.example.com",), ("*.evilexample.com",), ()),
        (("a.test",), ("a.test:443",), ("a.test:443",)),
        (("a.test",), ("a.test:8443",), ()),
        (("a.test:8443",), ("*.test:8443",), ("a.test:8443",)),
        (("a.test:8443",), ("a.test:443",), ()),
        (("a.test", "b.test"), ("b.test", "a.test"), ("a.test", "b.test")),
        (("*.test:80", "a.test"), ("*.test:80", "a.test"), ("*.test:80", "a.test")),
        (("*.test",), ("*.test", "a.test"), ("*.test",)),
        ((), ("a.test",), ()),
    ],
)
def test_what_two_lists_of_hosts_have_in_common(
    some: tuple[str, ...], others: tuple[str, ...], both: tuple[str, ...]
) -> None:
    assert common_hosts(some, others) == both


def net(name: str, *hosts: str, **more: Any) -> Profile:
    return Profile.model_validate({"name": name, "egress": {"hosts": hosts}, **more})


WIDE = net("wide", "*.example.com", memory_bytes="1GiB", longest_s=400)
SMALL = Profile.model_validate({"name": "small", "memory_bytes": "64MiB", "single_use": True})
SMALL_2 = SMALL.model_copy(update={"version": 2, "pids": 8})
KNOWN = {profile.key: profile for profile in (STRICT, WIDE, SMALL, SMALL_2)}
CODE = Tool(PYTHON.spec, PYTHON.action, PYTHON.problem, WIDE)


def held(tool: Tool, hold: Hold | None) -> Profile:
    made = held_to(tool, hold, KNOWN)
    assert isinstance(made, Tool)
    return made.profile


def test_a_call_without_a_bundle_is_held_to_its_tools_own_profile() -> None:
    assert held(CODE, None) is WIDE


def test_a_bundle_that_names_no_profile_and_no_host_still_leaves_no_network() -> None:
    assert held(CODE, Hold()) == WIDE.model_copy(update={"egress": None})


def test_a_bundle_narrows_the_hosts_of_the_tools_own_profile() -> None:
    left = held(CODE, Hold(egress=("api.example.com", "other.org"))).egress
    assert left is not None
    assert left.hosts == ("api.example.com",)


def test_a_host_that_only_the_demanded_profile_leaves_out_is_left_out() -> None:
    demanded = net("api", "api.example.com")
    made = tightened(WIDE, demanded, ("*.example.com",)).egress
    assert made is not None
    assert made.hosts == ("api.example.com",)
    assert tightened(demanded, WIDE, ("*.example.com",)).egress == made


def test_a_name_without_a_version_means_the_newest_profile() -> None:
    assert held(CODE, Hold(profile="small")).pids == 8
    assert held(CODE, Hold(profile="small@1")).pids == WIDE.pids
    assert held(CODE, Hold(profile="small@1")).memory_bytes == 64 * MIB


@pytest.mark.parametrize("hold", [{"profile": "../x"}, {"egress": ["http://a"]}, {"egress": ["a:port"]}])
def test_a_demand_that_cannot_be_read_is_refused_where_it_enters(hold: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Hold.model_validate(hold)


class Text(Arguments):
    text: str


def server_tool(profile: Profile) -> Tool:
    return from_model("calc__add", "Add.", Text, ServerTool("calc", ("calc-server",), "add"), profile=profile)


def test_a_server_under_a_stricter_profile_is_another_server_and_no_other_run_of_it_is_shared() -> None:
    nothing = Needs({}, {})
    own = server_tool(WIDE)
    tight = held_to(own, Hold(profile="small"), KNOWN)
    assert isinstance(tight, Tool)
    assert recipe_of(tight, nothing).server == recipe_of(own, nothing).server
    assert recipe_of(tight, nothing) != recipe_of(own, nothing)
    assert recipe_of(tight, nothing).profile.egress is None


def echoed(text: str) -> str:
    return text


def function() -> Tool:
    return from_model("mine", "What it does.", Text, Function(echoed))


def test_a_trusted_function_is_refused_unless_the_bundle_lets_it_run_unheld() -> None:
    refused = held_to(function(), Hold(), KNOWN)
    assert isinstance(refused, Refusal)
    assert "functions: allow" in refused.sentence
    allowed_one = held_to(function(), Hold(functions=True), KNOWN)
    assert isinstance(allowed_one, Tool)


def call_of(tool: Tool, **change: Any) -> ToolCall:
    call = ToolCall(
        tool_call_id=ToolCallId("t"), run_id=RunId("r"), call_id=CallId("c"), tool=tool.spec.name, digest=tool.spec.digest,
        arguments={"text": "hi"}, deadline=time.time() + 20, timeout_s=5, grant="",
    )  # fmt: skip
    return call.model_copy(update=change)


Run = Callable[..., ToolResult]


class Bench(ScriptedSandbox):
    """A scripted sandbox that remembers under which recipes containers were held."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        super().__init__(self._answer)

    def _answer(self, request: Request) -> Outcome:
        self.asked.append(request)
        return Outcome("ok", 0, "done")

    @property
    def profiles(self) -> list[str]:
        return sorted(recipe.profile.digest for _, recipe in self._known)


def run(bench: Bench, folder: Path, tool: Tool, **change: Any) -> ToolResult:
    execution = Execution(Toolbox([tool], KNOWN), bench, FixedVault({}), FolderBlobs(folder))
    return execution.run(call_of(tool, **change), lambda _: nullcontext())


def written(profile: Profile) -> Tool:
    return from_model("mine", "What it does.", Text, Written("python", "text"), profile=profile)


def test_the_runner_makes_the_container_from_the_tightened_profile_and_says_so(tmp_path: Path) -> None:
    bench, tool = Bench(), written(WIDE)
    loose = run(bench, tmp_path, tool)
    tight = run(bench, tmp_path, tool, hold=Hold(profile="small@1"))
    assert (loose.status, loose.profile) == ("ok", "wide@1")
    assert (tight.status, tight.profile) == ("ok", "wide@1, tightened")
    assert bench.profiles == sorted([WIDE.digest, tightened(WIDE, SMALL, ()).digest])


def test_a_call_that_is_held_to_what_it_has_already_shares_the_warm_containers(tmp_path: Path) -> None:
    bench = Bench()
    result = run(bench, tmp_path, written(STRICT), hold=Hold(profile="strict"))
    assert (result.profile, bench.profiles) == ("strict@1", [PLAIN.profile.digest])


def test_a_profile_that_the_runner_does_not_know_starts_nothing(tmp_path: Path) -> None:
    bench = Bench()
    result = run(bench, tmp_path, written(WIDE), hold=Hold(profile="vault@3"))
    assert (result.status, bench.asked) == ("refused", [])
    assert "there is no profile 'vault@3'; there are small@1, small@2, strict@1, wide@1" in result.stderr


def test_a_function_under_a_bundle_starts_nothing_in_the_runner(tmp_path: Path) -> None:
    called: list[str] = []

    def calling(text: str) -> None:
        called.append(text)

    tool = from_model("mine", "What it does.", Text, Function(calling))
    assert run(Bench(), tmp_path, tool, hold=Hold()).status == "refused"
    assert called == []
    assert run(Bench(), tmp_path, tool, hold=Hold(functions=True)).status == "ok"
    assert called == ["hi"]


def test_files_of_a_call_are_limited_by_the_tightened_profile(tmp_path: Path) -> None:
    bench, small = Bench(), Profile.model_validate({"name": "small", "put_bytes": 10})
    tool = written(WIDE)
    files = {"in": {"sha256": "", "size": 11, "inline": "YWJjZGVmZ2hpams="}}
    execution = Execution(Toolbox([tool], {small.key: small}), bench, FixedVault({}), FolderBlobs(tmp_path))
    call = ToolCall.model_validate({**call_of(tool).model_dump(), "files": files, "hold": {"profile": "small"}})
    result = execution.run(call, lambda _: nullcontext())
    assert (result.status, "more than 10 bytes" in result.stderr) == ("refused", True)
