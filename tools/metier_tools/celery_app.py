"""The Celery application of both ends, and what they must agree on. Untyped, and fenced here and in `celery_worker`.

`celery_lane` sends with it, `celery_worker` consumes with it. JSON only, no result back-end, no events, no remote control.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from metier_infra.words import Word

TASK = "metier.tool_call"
HARD_LIMIT_S = 420
"""Celery kills a child that took longer than any call may: the backstop behind the sandbox's own limits. Seconds."""
VISIBILITY_S = 900
"""Redis gives a message that nobody acknowledged to another worker after so long; callers send again far earlier. Seconds."""


class Config(Word):
    """Where both ends meet. `namespace` begins every key, channel and queue, so that several systems can share one Redis."""

    redis_url: str
    namespace: str = "metier"

    def queue(self, kind: str) -> str:
        """The queue of one class of tools."""
        return f"tools.{kind}"

    def replies(self, client: str) -> str:
        """The list that one client reads its replies from."""
        return f"{self.namespace}:replies:{client}"

    def given_up(self, tool_call_id: str) -> str:
        """The key that holds the grant of a call that its caller gave up."""
        return f"{self.namespace}:given-up:{tool_call_id}"

    @property
    def notes(self) -> str:
        """The channel on which callers speak to every runner."""
        return f"{self.namespace}:notes"


class Note(Word):
    """What a caller says to every runner of a call, which it proves by the grant: that it gives it up, or asks who is at it.

    `reply_list` is where a runner that has it in hand says so, of `call_digest`; None: the call is given up.
    """

    tool_call_id: str
    grant: str
    reply_list: str | None = None
    call_digest: str = ""


def make_app(config: Config) -> Any:
    """The Celery application."""
    app = Celery("metier-tools", broker=config.redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=HARD_LIMIT_S,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": VISIBILITY_S, "global_keyprefix": f"{config.namespace}:"},
        task_create_missing_queues=True,
    )
    return app
