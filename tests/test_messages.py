"""The words on the wire: what one side encodes the other decodes, and no bytes whatever do more harm than `Undecodable`."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metier_infra.errors import BuryRecord, TooLarge, Undecodable, UnknownEvent
from metier_infra.event_types import EVENTS
from metier_infra.events import (
    ApprovalDecided,
    ApprovalSettled,
    ApprovalWanted,
    CallAnswered,
    CallParked,
    CallRequested,
    CancelRequested,
    DecisionMade,
    Event,
    OutcomeReported,
    RedriveRequested,
    RequestRejected,
    RetryRequested,
    RouterMoved,
    RouterMoveRequested,
    RunAccepted,
    RunCancelled,
    RunFailed,
    RunRequested,
    RunStarted,
    RunSucceeded,
    Signalled,
    tasks_topic,
)
from metier_infra.messages import Delivery, Envelope, Record, decode, encode
from metier_infra.progress_events import (
    AgentAnswered,
    AgentAsked,
    NodeEnded,
    NodeStarted,
    RunParked,
    RunResumed,
    TextWritten,
    ToolAnswered,
    ToolCalled,
)
from metier_infra.service import dead_letter
from metier_infra.words import (
    LONGEST_MESSAGE,
    MOST_COUNTED,
    Allowance,
    Answer,
    CallId,
    Candidate,
    Decision,
    Failure,
    Limits,
    RunId,
    Spent,
    Task,
    ToolCallId,
    stable_id,
)

RUN, CALL = RunId("a" * 32), CallId("b" * 32)
FAILURE = Failure(code="call_failed", message="the model refused — “no”")
ANSWER = Answer(text="42", agent="coder", model="m", policy="autonomous", confidence=0.5, cost_usd=0.01)
DECISION = Decision(
    category="math_word",
    chosen=("a",),
    topology="specialist",
    reason="cheap",
    router="r.v1",
    candidates=(Candidate(agent="a", score=0.9, propensity=1.0),),
)
TASK = Task(text="6·7 = ?", category="math_word", context={"nested": [1, None, {"ключ": "значение"}]})
SAMPLES: tuple[Event, ...] = (
    RunRequested(workflow="specialists", input={"question": "6·7 = ?", "n": 1.5, "none": None}, version="v"),
    RunAccepted(run_id=RUN, workflow="w"),
    CallRequested(
        run_id=RUN, call_id=CALL, agent="coder", task=TASK, deadline=1e9, allowance=Allowance(usd=1.0, cut=("usd",))
    ),
    CallAnswered(run_id=RUN, call_id=CALL, answer=ANSWER),
    CallAnswered(run_id=RUN, call_id=CALL, failure=FAILURE),
    DecisionMade(run_id=RUN, decision=DECISION),
    RunStarted(run_id=RUN, workflow="w", version="v"),
    RunSucceeded(run_id=RUN, request_id="e", workflow="w", result={"answer": "42"}, cost_usd=0.25),
    RunFailed(
        run_id=RUN,
        request_id="e",
        workflow="w",
        failure=FAILURE,
        partial={"x": 1},
        cost_usd=0.25,
        spent=Spent(usd=0.25, tokens=9, tool_calls=1, time_s=2.5),
    ),
    RunCancelled(run_id=RUN, request_id="e", workflow="w", by="ann", note="too dear", cost_usd=0.25),
    CancelRequested(run_id=RUN, by="ann", note="too dear"),
    RetryRequested(run_id=RUN, by="ann"),
    RedriveRequested(run_id=RUN, by="ann"),
    Signalled(run_id=RUN, name="paid", data={"amount": 1}, by="shop"),
    RequestRejected(request_id="e", request_source="/s", request_type="t", failure=FAILURE),
    CallParked(run_id=RUN, call_id=CALL),
    NodeStarted(run_id=RUN, task="t", node="solve"),
    NodeEnded(run_id=RUN, task="t", node="solve", ok=True),
    AgentAsked(run_id=RUN, call_id=CALL, agent="coder", node="solve"),
    AgentAnswered(run_id=RUN, call_id=CALL, agent="coder", ok=False, reason="call_failed", cost_usd=0.25),
    ToolCalled(run_id=RUN, call_id=CALL, tool_call_id=ToolCallId("t"), agent="coder", tool="python"),
    ToolAnswered(
        run_id=RUN, call_id=CALL, tool_call_id=ToolCallId("t"), agent="coder", tool="python", ok=True, status="ok"
    ),
    OutcomeReported(run_id=RUN, score=0.5, kind="edit", weight=0.5, agent="coder", by="shop", note="half of it"),
    RouterMoveRequested(router="r.v2", to="canary", share=0.1, tenant="acme", by="ann"),
    RouterMoved(router="r.v2", before="shadow", to="canary", share=0.1, tenant="acme", by="ann"),
    RunParked(run_id=RUN, segment=1, calls=(CALL,)),
    RunResumed(run_id=RUN, segment=2),
    TextWritten(run_id=RUN, call_id=CALL, agent="coder", step=1, attempt=1, piece=-1, text="“42”"),
    ApprovalWanted(
        run_id=RUN,
        call_id=CALL,
        approval_id=ToolCallId("t"),
        agent="coder",
        tool="python",
        arguments={"code": "1"},
        why="dear",
        wanted_at=1e9,
        expires_at=2e9,
    ),
    ApprovalDecided(run_id=RUN, approval_id="t", granted=True, by="ann", note="go\non", arguments={"code": "2"}),
    ApprovalSettled(
        run_id=RUN, call_id=CALL, approval_id=ToolCallId("t"), agent="coder", tool="python", granted=False, by="ann"
    ),
)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WHEN = datetime(2026, 11, 24, 7, 0, tzinfo=UTC)


def enveloped(event: Event) -> Envelope[Event]:
    return Envelope(event, "id-1", "/test", "ключ", "subject", TRACE, WHEN)


def delivered(record: Record) -> Delivery:
    return Delivery(record.topic, 0, 0, record.key, record.value, record.headers)


def test_there_is_a_sample_of_every_event_type() -> None:
    assert {type(sample) for sample in SAMPLES} == set(EVENTS.values())


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_every_event_comes_back_as_it_was_with_its_whole_envelope(event: Event) -> None:
    assert decode(delivered(encode("t", enveloped(event)))) == enveloped(event)


def test_an_event_without_subject_and_trace_comes_back_without_them() -> None:
    bare = Envelope[Event](SAMPLES[1], "id", "/s", "k", time=WHEN)
    assert decode(delivered(encode("t", bare))) == bare


def test_a_plain_producer_can_write_what_we_read() -> None:
    """The form on the wire is a promise to programs that import nothing of ours."""
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", b"order-17"),
        ("ce_source", b"/shop"),
        ("ce_type", b"io.metier.run.requested.v1"),
        ("content-type", b"application/json"),
    )
    found = decode(Delivery("metier.requests", 0, 0, b"k", b'{"workflow": "w", "input": {"q": 1}}', headers))
    assert (found.id, found.source, found.data) == ("order-17", "/shop", RunRequested(workflow="w", input={"q": 1}))


def test_a_plain_consumer_can_read_what_we_write() -> None:
    record = encode("metier.events", enveloped(SAMPLES[7]))
    assert json.loads(record.value) == {
        "run_id": RUN,
        "request_id": "e",
        "workflow": "w",
        "result": {"answer": "42"},
        "cost_usd": 0.25,
        "spent": {"usd": 0.0, "tokens": 0, "tool_calls": 0, "time_s": 0.0},
        "agents": [],
    }
    assert record.key == "ключ".encode()
    headers = dict(record.headers)
    assert headers["ce_type"] == b"io.metier.run.succeeded.v1"
    assert headers["ce_id"] == b"id-1"
    assert headers["ce_specversion"] == b"1.0"
    assert headers["content-type"] == b"application/json"
    assert headers["traceparent"] == TRACE.encode()
    assert headers["ce_partitionkey"].decode() == "ключ"


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    record = encode("t", enveloped(SAMPLES[1]))
    wider = replace(record, value=json.dumps({**json.loads(record.value), "later": [1]}).encode())
    assert decode(delivered(wider)).data == SAMPLES[1]


def test_data_that_does_not_fit_is_undecodable_and_the_sentence_names_the_field() -> None:
    record = encode("t", enveloped(SAMPLES[1]))
    with pytest.raises(Undecodable, match="does not fit its type: workflow: Field required"):
        decode(delivered(replace(record, value=b'{"run_id": "r"}')))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ce_time": b"yesterday"}, "ce_time is 'yesterday', not a time of RFC 3339"),
        ({"ce_time": b"2016-12-31T23:59:60Z"}, "ce_time is '2016-12-31T23:59:60Z', not a time of RFC 3339"),
        ({"x-trail": b"\xff"}, "the header x-trail is not UTF-8"),
        ({"ce_id": b"\xff"}, "the header ce_id is not UTF-8"),
        ({"ce_type": b""}, "type: "),
    ],
)
def test_what_is_wrong_with_a_context_is_said_with_the_header_that_it_is_in(
    change: dict[str, bytes], says: str
) -> None:
    record = encode("metier.requests", enveloped(RunRequested(workflow="w", input={})))
    headers = tuple({**dict(record.headers), **change}.items())
    with pytest.raises(Undecodable, match=r"^not a CloudEvent in Kafka binary mode: ") as raised:
        decode(Delivery("t", 0, 0, None, record.value, headers))
    assert says in str(raised.value)


def test_who_sends_in_structured_mode_is_told_that_it_is_not_read() -> None:
    headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
    with pytest.raises(Undecodable, match="structured mode is not read"):
        decode(Delivery("t", 0, 0, None, b'{"specversion": "1.0"}', headers))


def test_another_systems_event_is_unknown_not_undecodable() -> None:
    record = encode("t", enveloped(SAMPLES[1]))
    headers = tuple((name, b"com.shop.sold" if name == "ce_type" else value) for name, value in record.headers)
    with pytest.raises(UnknownEvent, match=r"'com\.shop\.sold' is not one of ours"):
        decode(delivered(replace(record, headers=headers)))


NAMES = st.sampled_from(["ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "content-type", "traceparent"])
TYPES = st.sampled_from([kind.encode() for kind in EVENTS])
VALUES = st.one_of(st.binary(max_size=40), st.just(b"1.0"), st.just(b"application/json"), st.text().map(str.encode))
ANY_TEXT = st.text(st.characters())  # with lone surrogates, which JSON can spell and UTF-8 cannot
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | ANY_TEXT | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
BODIES = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


@given(
    headers=st.dictionaries(NAMES | st.text(max_size=8), VALUES | TYPES, max_size=8),
    value=BODIES,
    key=st.none() | st.binary(max_size=8),
    whole=st.booleans(),
    kind=TYPES,
)
def test_no_bytes_raise_anything_but_what_is_buried_and_the_dead_letter_can_be_written(
    headers: dict[str, bytes], value: bytes, key: bytes | None, whole: bool, kind: bytes
) -> None:
    envelope = {"ce_id": b"i", "ce_source": b"/s", "ce_specversion": b"1.0", "ce_type": kind}
    hostile = Delivery("t", 0, 0, key, value, tuple({**(envelope if whole else {}), **headers}.items()))
    try:
        decode(hostile)
    except BuryRecord as error:
        letter = dead_letter(hostile, error)
        assert (letter.key, letter.value) == (key, value)
        assert letter.headers[: len(hostile.headers)] == hostile.headers


@given(fields=st.dictionaries(st.sampled_from(["run_id", "call_id", "workflow", "input", "task"]), JSON), kind=TYPES)
def test_well_formed_json_of_any_shape_decodes_or_is_buried(fields: dict[str, object], kind: bytes) -> None:
    headers = (("ce_id", b"i"), ("ce_source", b"/s"), ("ce_specversion", b"1.0"), ("ce_type", kind))
    with suppress(Undecodable, UnknownEvent):
        decode(Delivery("t", 0, 0, b"k", json.dumps(fields).encode(), headers))


@given(place=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
def test_one_flipped_byte_in_a_good_event_is_decoded_or_buried(place: int, flip: int) -> None:
    record = encode("t", enveloped(SAMPLES[2]))
    value = bytearray(record.value)
    value[place % len(value)] ^= flip
    with suppress(BuryRecord):
        decode(delivered(replace(record, value=bytes(value))))


def test_words_are_frozen() -> None:
    for field in Task.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(TASK, field, "other")


@pytest.mark.parametrize(
    ("parts", "golden"),
    [
        (("run", "/shop", "order-17"), "1dcdcea1df38e356144a2907ccd6f1a0"),
        (("call", "a", "node:task", 1), "a850fddf6b52beeaa41ea78775647739"),
        ((), "4f53cda18c2baa0c0354bb5f9a3ecbe5"),
    ],
)
def test_ids_depend_on_their_parts_alone_and_never_change(parts: tuple[str | int, ...], golden: str) -> None:
    """A run in flight through an upgrade finds its calls again only if these stay."""
    assert stable_id(*parts) == golden


def test_ids_do_not_run_their_parts_together() -> None:
    ids = [stable_id("ab", "c"), stable_id("a", "bc"), stable_id("abc"), stable_id("a", 1), stable_id("a", "1")]
    assert len(set(ids)) == len(ids)


def test_each_agent_has_a_topic_of_its_own() -> None:
    assert tasks_topic("coder") == "metier.agents.coder.tasks"


@pytest.mark.parametrize("header", ["ce_id", "ce_source"])
@pytest.mark.parametrize("value", ["x" * 1001, "with\x00nul", "with\nline"])
def test_an_id_or_source_that_nobody_can_keep_or_show_is_undecodable(header: str, value: str) -> None:
    record = encode("t", Envelope(RunRequested(workflow="w", input={}), "1", "/s", "k"))
    headers = tuple((name, value.encode() if name == header else text) for name, text in record.headers)
    with pytest.raises(Undecodable, match=header):
        decode(Delivery("t", 0, 0, None, record.value, headers))


@pytest.mark.parametrize("workflow", ["", "w" * 201, "with\x00nul"])
def test_a_workflows_name_is_short_and_printable(workflow: str) -> None:
    record = encode("t", Envelope(RunRequested(workflow="w", input={}), "1", "/s", "k"))
    value = json.dumps({"workflow": workflow, "input": {}}).encode()
    with pytest.raises(Undecodable, match="workflow"):
        decode(Delivery("t", 0, 0, None, value, record.headers))


def test_a_failure_says_what_can_be_read_by_all_and_no_more_than_is_kept() -> None:
    failure = Failure(code="call_failed", message="half \ud83d" + "x" * LONGEST_MESSAGE)
    assert failure.message.startswith(r"half \ud83dxxx")
    assert failure.message.endswith("x…")
    assert len(failure.message) < LONGEST_MESSAGE + 10


def test_a_limit_beyond_what_the_journal_counts_is_taken_for_the_largest() -> None:
    limits = Limits.model_validate({"tokens": 10**23, "tool_calls": MOST_COUNTED - 1})
    assert (limits.tokens, limits.tool_calls) == (MOST_COUNTED, MOST_COUNTED - 1)


def test_an_event_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(TooLarge, match="an event carries"):
        encode("t", Envelope(RunRequested(workflow="w", input={"x": "y" * (49 << 20)}), "1", "/s", "k"))
