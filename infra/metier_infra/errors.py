"""One error tree; the type says what happens next.

Raised everywhere, caught by type in `service` (records), `orchestrator` (runs), `worker` (calls) and `cli` (people). Vendor errors
are chained into it where a vendor is fenced and never pass beyond.

    MetierError
    ├── RetryLater          nothing is lost; try again after `after_s`
    │   ├── BusGone             the broker does not answer
    │   │   └── BusRefused          the broker is there and says no: a password, a certificate or an access control list
    │   ├── JournalGone         the database does not answer
    │   ├── LaneGone            no tool runner took or answered the call
    │   ├── EngineGone          the Docker engine does not answer
    │   ├── ModelBusy           rate limit, overload or cut connection of a model provider
    │   │   └── CircuitOpen         the model was away again and again, and is not asked for a while
    │   ├── NoTurn              the run's tenant has as many under way as it may
    │   ├── NotServedHere       another replica serves the run's version of its workflow
    │   └── Held                another worker holds this call just now
    ├── BuryRecord          this record can never be handled: to the dead letters, with its bytes
    │   ├── Undecodable         not a CloudEvent, or its data does not fit its type
    │   ├── UnknownEvent        a type that this topic does not carry
    │   ├── FarFuture           an event that says it is of a day to come
    │   ├── UnknownCall         a call that the journal does not know
    │   ├── UnknownApproval     a decision about something that nobody asked for
    │   ├── Defect              our own code breaks at it, each time
    │   └── Poison              it fails as if a service were away, and others show that it is there
    ├── RejectRequest       a request that can be read and not be done: an event says why
    │   ├── DuplicateId         another request had the same source and id
    │   ├── QueueFull           as many runs of the tenant wait as may
    │   ├── TenantSpent         nothing is left of what the tenant may take in this hour, day or month
    │   ├── UnknownRun          no run of this id was ever accepted
    │   ├── RunEnded            it ended, so that nothing can be done to it
    │   ├── RunNotEnded         it goes on, so that it cannot be repeated yet
    │   ├── UnknownRouter       no router version of this name was fitted
    │   └── MoveRefused         the version may not stand there, or not yet
    ├── FailRun             the call, or the run, ends failed with this reason
    │   ├── UnknownWorkflow
    │   ├── BadInput            the event's input does not fit the workflow
    │   ├── WorkflowBroken      the author's graph raised, or its shape changed under a run
    │   ├── ProcessLost         the run took one process after the other with it
    │   ├── CallFailed          an agent's call ended failed, and the graph did not handle it
    │   ├── SubRunFailed        a run that a node started did not succeed, and the graph did not handle it
    │   ├── DeadlineMissed
    │   ├── LimitReached        a declared limit (turns, tokens, tool calls, cost, time) of a call, run or tenant stopped the work
    │   ├── ModelFailed         the model refused the request, or gave nothing usable
    │   │   ├── ContextTooLong      the request is longer than the model can read
    │   │   ├── ModelMalformed      what the model wrote could not be read, again and again
    │   │   └── NotRecorded         a replay came to something of which nothing is recorded, and may not ask
    │   ├── ModelRefused        the model, or its provider's filter, declined; the safety bundle makes that an end
    │   ├── AnswerWithheld      an output check of the safety bundle held the answer back
    │   ├── ToolGone            a tool of the agent that no tool runner knows any more
    │   ├── Cancelled           somebody gave the call up
    │   ├── GrantRefused        a tool call without a valid grant
    │   ├── MissingBlob         a claim check whose bytes are gone
    │   ├── ToolCancelled       a tool call that its caller gave up
    │   └── TooLarge            more than an event or a broker takes
    ├── AskOperator         a person must act first; commands end with this sentence
    │   ├── BadSettings
    │   ├── BadSpec             an agent, tool or workflow file that does not fit
    │   ├── UnknownAgent        no agent of this name is declared
    │   ├── MissingRun          no run of this id is in the journal
    │   ├── MissingApproval     no approval of this id waits
    │   ├── MissingLetter       no dead letter of this id is there
    │   ├── MissingRouter       no router version of this name is in the journal
    │   ├── RouterBroken        a router version in the journal that cannot be read
    │   ├── LetterIncomplete    a dead letter that was not kept whole, and cannot be sent again
    │   ├── MissingPackage      an extra that is not installed
    │   ├── ServerBroken        an MCP server that does not start, or does not speak the protocol
    │   ├── MissingService      no broker, database or engine where the settings say
    │   └── SchemaBehind        the journal's schema is older than the code
    └── FencedOff           another process owns the run now: stop quietly, write nothing
"""

from __future__ import annotations

import re


class MetierError(Exception):
    """The root. `str(error)` is one sentence for a person; `code` is the same for a machine."""

    @property
    def code(self) -> str:
        """The type's name in snake_case, as it stands in failure events: `unknown_workflow`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class RetryLater(MetierError):
    """Nothing is lost: try again. `after_s` is a wished delay in seconds, or None for the ordinary back-off."""

    def __init__(self, message: str, *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class BusGone(RetryLater):
    """The broker does not answer."""


class BusRefused(BusGone):
    """The broker is there and says no to this user, certificate or operation: a person must act, and what waits goes on then."""


class JournalGone(RetryLater):
    """The database does not answer."""


class LaneGone(RetryLater):
    """No tool runner took the call, or none answered in time."""


class EngineGone(RetryLater):
    """The Docker engine does not answer."""


class ModelBusy(RetryLater):
    """The model's provider is overloaded, limits the rate, or cut the connection.

    `maybe_billed`: the request had reached the provider, which may have answered and charged for it.
    """

    def __init__(self, message: str, *, after_s: float | None = None, maybe_billed: bool = False) -> None:
        super().__init__(message, after_s=after_s)
        self.maybe_billed = maybe_billed


class CircuitOpen(ModelBusy):
    """The model was busy or away so often in a row that it is not asked before `after_s`; no request was made."""


class NoTurn(RetryLater):
    """The run's tenant has as many runs under way, over all replicas, as it may: it waits for one of them to end."""


class NotServedHere(RetryLater):
    """Another replica serves the run's version of its workflow, or did a moment ago: the run is left to it."""


class Held(RetryLater):
    """Another worker holds this call; it ends or its claim runs out."""


class BuryRecord(MetierError):
    """The record can never be handled: it goes to the dead letters with this reason and its original bytes."""


class Undecodable(BuryRecord):
    """Not a CloudEvent in binary mode, or its data does not fit its type."""


class UnknownEvent(BuryRecord):
    """An event type that this topic does not carry."""


class FarFuture(BuryRecord):
    """The event says that it happened more than a day from now: its clock is wrong, or ours."""


class UnknownCall(BuryRecord):
    """A call that the journal does not know: nobody waits for its answer."""


class UnknownApproval(BuryRecord):
    """A decision about a tool call that waits for nobody, or is of another run."""


class Defect(BuryRecord):
    """Our own code breaks at this record, each time: a bug of Métier, or a value that a database cannot hold."""


class Poison(BuryRecord):
    """It failed again and again as if the journal or the bus were away, while other records were handled."""


class RejectRequest(MetierError):
    """A request that can be read and cannot be done: whoever made it is told why, by an event, under this code."""


class DuplicateId(RejectRequest):
    """Another request had the same source and id and asks for something else; the first one's run goes on untouched."""


class QueueFull(RejectRequest):
    """As many runs of the tenant wait for their turn as may. The same request may be made again later."""


class TenantSpent(RejectRequest):
    """Nothing is left of what the tenant may take in this hour, day or month, and its new runs are to be rejected then."""


class UnknownRun(RejectRequest):
    """No run of this id was ever accepted."""


class RunEnded(RejectRequest):
    """The run ended, so that this cannot be done to it any more."""


class RunNotEnded(RejectRequest):
    """The run goes on, so that it cannot be repeated yet."""


class UnknownRouter(RejectRequest):
    """No router version of this name was ever fitted."""


class MoveRefused(RejectRequest):
    """The router version may not stand there, or not before it was judged."""


class FailRun(MetierError):
    """The call, or the run, ends failed; `code` and the sentence stand in its terminal event."""


class UnknownWorkflow(FailRun):
    """No orchestrator serves a workflow of this name and version."""


class BadInput(FailRun):
    """The event's input does not fit what the workflow declares."""


class WorkflowBroken(FailRun):
    """The author's graph raised, or its shape changed under a run that was in flight."""


class ProcessLost(FailRun):
    """One process after the other died, or broke, while it ran this run."""


class CallFailed(FailRun):
    """An agent's call ended failed; `reason` is the code of the failure in the worker."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SubRunFailed(FailRun):
    """A run that a node started failed or was given up; `reason` is the code of its failure, or `cancelled`."""

    def __init__(self, message: str, *, reason: str, run_id: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.run_id = run_id


class DeadlineMissed(FailRun):
    """The work was not done when its time ran out."""


class LimitReached(FailRun):
    """A declared limit (turns, tokens, tool calls, cost, time) of a call, run or tenant stopped the work."""


class ModelFailed(FailRun):
    """The model refused the request for good, or gave nothing usable."""


class ContextTooLong(ModelFailed):
    """The request is longer than the model can read."""


class ModelMalformed(ModelFailed):
    """What the model wrote could not be read, for the third time in one call."""


class NotRecorded(ModelFailed):
    """A replay came to a model that it may not ask, or to a tool call of which no result is recorded."""


class ModelRefused(FailRun):
    """The model, or its provider's filter, declined to answer, and the agent's safety bundle makes that the end."""


class AnswerWithheld(FailRun):
    """An output check of the agent's safety bundle held the answer back."""


class ToolGone(FailRun):
    """A tool that the agent was offered is known to no tool runner any more, or is not the same."""


class Cancelled(FailRun):
    """Somebody gave the call up; its model request and its tool calls were ended."""


class GrantRefused(FailRun):
    """A tool call whose grant is forged, or for another call."""


class MissingBlob(FailRun):
    """The bytes of a claim check are not in the store, or not what they were."""


class ToolCancelled(FailRun):
    """Whoever made the tool call gave it up: its container was ended."""


class TooLarge(FailRun):
    """More than an event may carry, or than the broker takes: trying again cannot help."""


class AskOperator(MetierError):
    """A person must act first. A command that meets it prints the sentence and ends with exit code 2."""


class BadSettings(AskOperator):
    """A setting that is missing, unknown or out of range."""


class BadSpec(AskOperator):
    """A file that declares an agent, tool or workflow and does not fit its model."""


class UnknownAgent(AskOperator):
    """No agent of this name is declared."""


class MissingRun(AskOperator):
    """No run of this id is in the journal."""


class MissingApproval(AskOperator):
    """No approval of this id is in the journal, or it waits no more, or more than one does."""


class MissingLetter(AskOperator):
    """No dead letter of this id is there, or none that fits."""


class MissingRouter(AskOperator):
    """No router version of this name is in the journal, or it begins like several."""


class RouterBroken(AskOperator):
    """A router version in the journal cannot be read, or is not what was stored."""


class LetterIncomplete(AskOperator):
    """The dead letter was not kept whole, or is not ours: it cannot be sent again as it was."""


class MissingPackage(AskOperator):
    """An optional package that is not installed; the sentence names the extra."""


class MissingService(AskOperator):
    """A broker, database, engine or image that is not where the settings say."""


class ServerBroken(AskOperator):
    """An MCP server does not start, does not speak the protocol, or says more than it may."""


class SchemaBehind(AskOperator):
    """The journal's schema is not the one that this code needs."""


class FencedOff(MetierError):
    """Another process owns the run: stop quietly. Nothing was written."""
