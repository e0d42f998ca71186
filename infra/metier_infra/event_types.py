"""Every event by its CloudEvents type: `messages` reads records by it; the reference pages and the AsyncAPI document are made of it."""

from __future__ import annotations

from collections.abc import Mapping

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
)
from metier_infra.progress_events import PROGRESS

_KINDS: tuple[type[Event], ...] = (
    RunRequested,
    CancelRequested,
    RetryRequested,
    RedriveRequested,
    Signalled,
    RequestRejected,
    RunAccepted,
    CallRequested,
    CallAnswered,
    CallParked,
    ApprovalWanted,
    ApprovalDecided,
    ApprovalSettled,
    DecisionMade,
    OutcomeReported,
    RouterMoveRequested,
    RouterMoved,
    RunStarted,
    *PROGRESS,
    RunSucceeded,
    RunFailed,
    RunCancelled,
)
EVENTS: Mapping[str, type[Event]] = {kind.TYPE: kind for kind in _KINDS}
