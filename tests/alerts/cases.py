"""When each alert must fire, and when it must not: the cases from which the unit tests of the rules are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from .promtool import Case, Labels, series

FAST, SLOW, LONG = ("1h", "critical"), ("6h", "critical"), ("3d", "warning")
"""The windows of a burn rate, with how grave each is."""
SPREAD = " ".join(f"{number}x6" for number in range(1, 7))
"""Six more, one each 35 minutes where a value is five minutes."""


def alert(name: str, severity: str, **labels: str) -> tuple[Labels]:
    return ({"alertname": name, "severity": severity, **labels},)


def burn(name: str, *windows: tuple[str, str]) -> tuple[Labels, ...]:
    return tuple(
        {"alertname": name, "severity": severity, "window": window, "gen_ai_workflow_name": "w"}
        for window, severity in windows
    )


def ended(state: str, reason: str = "", instance: str = "one") -> str:
    return series(
        "metier_runs_ended_total",
        gen_ai_workflow_name="w",
        metier_run_state=state,
        metier_reason=reason,
        instance=instance,
    )


GOOD, BAD = ended("succeeded"), ended("failed", "call_failed")


def runs_failing() -> Iterator[Case]:
    """Values a minute apart for what takes two hours, and further apart for what takes longer."""

    def case(
        says: str, at: str, good: str, bad: str, *windows: tuple[str, str], every: str = "1m", **more: str
    ) -> Case:
        others = {ended(*names.split("__")): values for names, values in more.items()}
        fires = burn("MetierRunsFailing", *windows)
        return Case("MetierRunsFailing", says, {GOOD: good, BAD: bad, **others}, at, fires, every)

    def long(says: str, at: str, good: str, bad: str, *windows: tuple[str, str]) -> Case:
        return case(says, at, good, bad, *windows, every="5m")

    yield case("a fifth fails", "61m", "0+8x70", "0+2x70", FAST, SLOW, LONG)
    yield case("15 % fail, a little more than the fast burn", "61m", "0+85x70", "0+15x70", FAST, SLOW, LONG)
    yield case("13 % fail, a little less than the fast burn", "61m", "0+87x70", "0+13x70", SLOW, LONG)
    yield long("7 % fail, a little more than the slow burn", "7h", "0+93x90", "0+7x90", SLOW, LONG)
    yield long("5 % fail, a little less than the slow burn", "7h", "0+95x90", "0+5x90", LONG)
    yield long("1.2 % fail, more than may", "7h", "0+988x90", "0+12x90", LONG)
    yield long("0.8 % fail, less than may", "7h", "0+992x90", "0+8x90")
    yield case("it is over for six minutes", "61m", "0+8x70", "0+2x54 108x20", SLOW, LONG)
    yield case("it is over for more than half an hour", "90m", "0+8x110", "0+2x54 108x60", LONG)
    yield long("it is over since hours", "8h30m", "0+8x120", "0+2x12 24x100")
    yield case("four minutes of trouble after hours without", "154m", "0+80x160", "0x150 0+30x10")
    yield long("twenty minutes of trouble after a good day", "10h20m", "0+80x130", "0x120 0+20x10")
    yield case("it gets better for seven minutes", "61m", "0+80x54 4320+90x20", "0+20x54 1080+10x20", SLOW, LONG)
    yield long("it gets better for 35 minutes", "6h45m", "0+80x73 5840+96x20", "0+20x73 1460+4x20", LONG)
    yield case("it gets better for hours", "17h", "0+95x20 1900+993x20", "0+5x20 100+7x20", every="30m")
    yield case("half an hour of trouble after hours without", "2h", "0+80x130", "0x90 0+20x40", LONG)
    yield long("two hours of trouble after a good day", "12h", "0+90x150", "0x120 0+10x30", LONG)
    yield case("six hours of a little trouble after a good day", "36h", "0+95x80", "0x60 0+5x20", every="30m")
    yield case("an hour of trouble after hours without", "152m", "0+8x90 720+8x70", "0x90 0+2x70", FAST, SLOW, LONG)
    yield case("six hours of trouble after a good day", "37h", "0+92x80", "0x60 0+8x20", SLOW, LONG, every="30m")
    yield case("three days of trouble after ten good ones", "318h", "0+98x60", "0x40 0+2x20", LONG, every="6h")
    yield case("two now, ten hours ago", "114m", "0x120", "0 10x110 11 12x20", SLOW, LONG)
    yield long("two now, ten half a day ago", "10h", "0x130", "0 10x115 11 12x20", LONG)
    yield case("two now, ten last week", "168h", "0x40", "0 10x25 11 12x20", every="6h")
    yield case("seven failures, and nothing but failures", "61m", "0x70", "0 1 2 3 4 5 6 7x63", LONG)
    yield case("four failures on a quiet night", "61m", "0x70", "0x58 2 4x12")
    yield case("six failures within the hour", "60m", "0x70", "0x56 3 6x12", FAST, SLOW, LONG)
    yield case("six failures, all told", "7h15m", "0x95", f"0x50 {SPREAD}", SLOW, LONG, every="5m")
    yield long("nothing runs any more", "9h", "500x120", "100x120")
    yield case("counters begin anew after old failures", "70m", "0+10x60 0+10x20", "60x60 0x20")
    yield case("the replica that failed once is gone", "70m", "0+10x80", "0x80", failed__call_failed__two="90x30 stale")
    for reason in ("bad_input", "unknown_workflow", "limit_reached", "model_refused", "answer_withheld"):
        yield case(f"{reason} is no failure of ours", "61m", "0+1x70", "0x70", **{f"failed__{reason}": "0+5x70"})
    yield case("cancelled runs are nobody's failure", "61m", "0+99x70", "0x70", cancelled="0+90x70")
    yield case("and hide none", "61m", "0+8x70", "0+2x70", FAST, SLOW, LONG, cancelled="0+90x70")
    yield case("reasons add up", "61m", "0+80x70", "0+9x70", FAST, SLOW, LONG, failed__deadline_missed="0+11x70")


def first_step_late() -> Iterator[Case]:
    """Values a minute apart for what takes two hours, and further apart for what takes longer."""

    def case(
        says: str, at: str, begun: str, soon: str, *windows: tuple[str, str], le: str = "5.0", every: str = "1m"
    ) -> Case:
        counted = series("metier_run_first_step_seconds_count", gen_ai_workflow_name="w")
        bucket = series("metier_run_first_step_seconds_bucket", gen_ai_workflow_name="w", le=le)
        other = series("metier_run_first_step_seconds_bucket", gen_ai_workflow_name="w", le="10.0")
        fires = burn("MetierFirstStepLate", *windows)
        return Case("MetierFirstStepLate", says, {counted: begun, bucket: soon, other: begun}, at, fires, every)

    def long(says: str, at: str, begun: str, soon: str, *windows: tuple[str, str]) -> Case:
        return case(says, at, begun, soon, *windows, every="5m")

    yield case("four of five begin late", "61m", "0+10x70", "0+2x70", FAST, SLOW, LONG)
    yield case("the same, as other exporters write the bucket", "61m", "0+10x70", "0+2x70", FAST, SLOW, LONG, le="5")
    yield case("75 % are late, a little more than the fast burn", "61m", "0+100x70", "0+25x70", FAST, SLOW, LONG)
    yield case("69 % are late, a little less than the fast burn", "61m", "0+100x70", "0+31x70", SLOW, LONG)
    yield long("33 % are late, a little more than the slow burn", "7h", "0+100x90", "0+67x90", SLOW, LONG)
    yield long("27 % are late, a little less than the slow burn", "7h", "0+100x90", "0+73x90", LONG)
    yield long("6 % are late, more than may", "7h", "0+100x90", "0+94x90", LONG)
    yield long("4 % are late, less than may", "7h", "0+100x90", "0+96x90")
    yield case("it is over for six minutes", "61m", "0+10x70", "0x54 0+10x20", SLOW, LONG)
    yield case("it is over for more than half an hour", "90m", "0+10x110", "0x54 0+10x60", LONG)
    yield long("it is over since hours", "8h30m", "0+10x120", "0x12 0+10x110")
    yield case("five minutes of trouble after hours without", "155m", "0+10x160", "0+10x150 1500x10")
    yield long("twenty-five minutes of trouble after a good day", "10h25m", "0+10x130", "0+10x120 1200x10")
    yield case("it gets better for seven minutes", "61m", "0+10x80", "0x54 0+5x20", SLOW, LONG)
    yield long("it gets better for 35 minutes", "6h45m", "0+10x100", "0x73 0+8x20", LONG)
    yield case("it gets better for hours", "17h", "0+1000x40", "0+800x20 16000+965x20", every="30m")
    yield case("half an hour of trouble after hours without", "2h", "0+10x130", "0+10x90 900x40", LONG)
    yield long("two hours of trouble after a good day", "12h", "0+10x150", "0+10x120 1200+4x30", LONG)
    yield case("six hours of a little trouble after a good day", "36h", "0+10x80", "0+10x60 600+8x20", every="30m")
    yield case("an hour of trouble after hours without", "152m", "0+10x160", "0+10x90 900+2x70", FAST, SLOW, LONG)
    yield case("six hours of trouble after a good day", "37h", "0+10x80", "0+10x60 600+6x20", SLOW, LONG, every="30m")
    yield case("three days of trouble after ten good ones", "318h", "0+100x60", "0+100x40 4000+92x20", LONG, every="6h")
    yield case("two now, ten hours ago", "114m", "0 10x110 11 12x20", "0x140", SLOW, LONG)
    yield long("two now, ten half a day ago", "10h", "0 10x115 11 12x20", "0x140", LONG)
    yield case("two now, ten last week", "168h", "0 10x25 11 12x20", "0x50", every="6h")
    yield case("four that wait on a quiet night", "61m", "0x58 2 4x12", "0x80")
    yield case("six that wait on a quiet night", "60m", "0x56 3 6x12", "0x80", FAST, SLOW, LONG)
    yield long("six that wait, all told", "7h15m", f"0x50 {SPREAD}", "0x95", SLOW, LONG)
    yield long("seven that waited, hours ago", "5h", "0 1 2 3 4 5 6 7x60", "0x90", LONG)
    yield long("nothing begins any more", "9h", "500x120", "100x120")
    yield case("counters begin anew", "70m", "0+10x60 0+10x20", "0+10x60 0+10x20")


def run_stuck() -> Iterator[Case]:
    def case(says: str, state: str, at: str, quiet: str, *, fires: bool, also: str = "0x200") -> Case:
        one, two = (
            series("metier_run_quiet_seconds", metier_run_state=state, instance=name) for name in ("one", "two")
        )
        expected = alert("MetierRunStuck", "warning", metier_run_state=state) if fires else ()
        return Case("MetierRunStuck", f"{state}: {says}", {one: quiet, two: also}, at, expected)

    yield case("silent for 31 minutes, and 5 more", "running", "37m", "0+60x60", fires=True)
    yield case("as every orchestrator tells it", "running", "37m", "0+60x60", also="0+60x60", fires=True)
    yield case("for less than 5 minutes more", "running", "34m", "0+60x60", fires=False)
    yield case("a call that takes 25 minutes", "running", "60m", "1500x80", fires=False)
    yield case("it went on", "running", "45m", "0+60x33 0x60", fires=False)
    yield case("the orchestrator that told it is gone", "running", "40m", "2000x3 stale", fires=False)
    yield case("not taken up for 16 minutes, and 5 more", "accepted", "22m", "0+60x60", fires=True)
    yield case("it waits its turn for 14 minutes", "accepted", "60m", "840x80", fires=False)
    yield case("for less than 5 minutes more", "accepted", "19m", "0+60x60", fires=False)
    yield case("not woken for 6 minutes, and 5 more", "parked", "12m", "0+60x60", fires=True)
    yield case("woken 4 minutes late", "parked", "60m", "240x80", fires=False)
    yield case("for less than 5 minutes more", "parked", "9m", "0+60x60", fires=False)


def role_gone() -> Iterator[Case]:
    def case(says: str, at: str, states: Mapping[tuple[str, str], str], *, gone: str = "") -> Case:
        found = {
            series("metier_role_state", metier_role=role, metier_role_state="ready", instance=instance): values
            for (role, instance), values in states.items()
        }
        return Case(
            "MetierRoleGone", says, found, at, alert("MetierRoleGone", "critical", metier_role=gone) if gone else ()
        )

    one, two, tools, agent = ("orchestrator", "one"), ("orchestrator", "two"), ("tools", "one"), ("agent", "one")
    gone = {one: "1x30 stale", tools: "1x200"}
    yield case("the only orchestrator is gone for six minutes", "37m", gone, gone="orchestrator")
    yield case("for an hour it is said", "85m", gone, gone="orchestrator")
    yield case("and then no more", "100m", gone)
    yield case("it comes back within 5 minutes", "35m", gone)
    yield case("no tool runner is left", "40m", {one: "1x200", tools: "1x30 stale"}, gone="tools")
    yield case("one replica of two is gone", "40m", {one: "1x30 stale", two: "1x200"})
    yield case("an agent is scaled to nothing", "40m", {one: "1x200", agent: "1x30 stale"})
    yield case("nothing ever ran", "100m", {})
    yield case("a replica drains", "40m", {one: "1x30 0x60"})


def oldest_event_late() -> Iterator[Case]:
    def case(says: str, topic: str, at: str, age: str, *, fires: bool, also: str = "0x100") -> Case:
        one, two = (
            series("metier_event_oldest_age_seconds", messaging_destination_name=topic, instance=name)
            for name in ("one", "two")
        )
        expected = alert("MetierOldestEventLate", "warning", messaging_destination_name=topic) if fires else ()
        return Case("MetierOldestEventLate", f"{topic}: {says}", {one: age, two: also}, at, expected)

    requests, calls = "metier.requests", "metier.agents.coder.tasks"
    yield case("older than a minute, for 5", requests, "8m", "0+60x60", fires=True)
    yield case("on two replicas", requests, "8m", "0+60x60", also="0+60x60", fires=True)
    yield case("not yet for 5", requests, "6m", "0+60x60", fires=False)
    yield case("90 seconds old at all times", requests, "60m", "90x80", fires=True)
    yield case("50 seconds old at all times", requests, "60m", "50x80", fires=False)
    yield case("handled at last", requests, "20m", "0+60x10 0x60", fires=False)
    yield case("whoever had it is gone", requests, "20m", "900x3 stale", fires=False)
    yield case("a call that takes 9 minutes", calls, "60m", "540x80", fires=False)
    yield case("a call that waits for 11 minutes", calls, "20m", "660x60", fires=True)
    yield case("where topics have a prefix too", "acme.metier.agents.coder.tasks", "60m", "540x80", fires=False)


def consumer_silent() -> Iterator[Case]:
    labels = {"messaging_destination_name": "metier.runs", "messaging_consumer_group_name": "g"}

    def case(says: str, at: str, age: str, lag: str, *, fires: bool) -> Case:
        found = {
            series("metier_consumer_commit_age_seconds", **labels): age,
            series("metier_consumer_lag", **labels): lag,
            series("metier_consumer_commit_age_seconds", **{**labels, "instance": "two"}): "0x100",
            series("metier_consumer_lag", **{**labels, "instance": "two"}): "0x100",
        }
        expected = alert("MetierConsumerSilent", "critical", **labels) if fires else ()
        return Case("MetierConsumerSilent", says, found, at, expected)

    yield case("records wait, none is finished", "12m", "0+60x60", "5x60", fires=True)
    yield case("not yet for 5 minutes", "9m", "0+60x60", "5x60", fires=False)
    yield case("nothing waits", "60m", "0+60x60", "0x60", fires=False)
    yield case("each takes 4 minutes", "60m", "240x80", "50x80", fires=False)
    yield case("it went on", "20m", "0+60x12 0x60", "5x60", fires=False)
    yield case("the replica is gone", "20m", "400x3 stale", "5x3 stale", fires=False)


def dead_letters() -> Iterator[Case]:
    about = {"messaging_destination_name": "metier.requests", "metier_reason": "undecodable"}

    def case(says: str, at: str, counted: str, *, fires: bool, also: str = "") -> Case:
        found = {series("metier_dead_letters_total", messaging_destination_name="metier.requests", metier_reason=""): "0x300",
                 series("metier_dead_letters_total", **about): counted}  # fmt: skip
        if also:
            found[series("metier_dead_letters_total", **about, instance="two")] = also
        return Case(
            "MetierDeadLetters", says, found, at, alert("MetierDeadLetters", "warning", **about) if fires else ()
        )

    yield case("the first of its kind", "91m", "_x90 1x60", fires=True)
    yield case("an hour later", "152m", "_x90 1x120", fires=False)
    yield case("one more", "91m", "1x90 2x60", fires=True)
    yield case("one more, and an hour later", "155m", "1x90 2x90", fires=False)
    yield case("old ones only", "90m", "7x200", fires=False)
    yield case("counters begin anew", "100m", "7x90 0x60", fires=False)
    yield case("one after counters began anew", "100m", "7x90 0 0 0 1x60", fires=True)
    yield case("the replica with old ones is gone", "100m", "0x200", also="9x80 stale", fires=False)
    yield case("there was none", "100m", "0x200", fires=False)


def service_away() -> Iterator[Case]:
    def case(says: str, at: str, reason: str, counted: str, *, fires: bool) -> Case:
        found = {
            series("metier_retries_total", metier_reason=reason): counted,
            series("metier_retries_total", metier_reason=reason, instance="two"): "0x100",
        }
        expected = alert("MetierServiceAway", "critical", metier_reason=reason) if fires else ()
        return Case("MetierServiceAway", f"{reason}: {says}", found, at, expected)

    for reason in ("bus_gone", "journal_gone", "lane_gone", "engine_gone"):
        yield case("away", "13m", reason, "0+30x60", fires=True)
    yield case("one who tries each 8 seconds", "15m", "journal_gone", "0+7.5x60", fires=True)
    yield case("not yet for 10 minutes", "9m", "journal_gone", "0+30x60", fires=False)
    yield case("away for 4 minutes", "16m", "journal_gone", "0+30x4 120x60", fires=False)
    yield case("over for 6 minutes", "36m", "journal_gone", "0+30x30 900x60", fires=False)
    yield case("a retry now and then", "50m", "journal_gone", "0+4x60", fires=False)
    yield case("counters begin anew", "50m", "journal_gone", "900x45 0x60", fires=False)
    yield case("the replica is gone", "50m", "journal_gone", "0+30x20 stale", fires=False)
    for reason in ("held", "no_turn", "not_served_here", "model_busy"):
        yield case("is ordinary", "50m", reason, "0+30x60", fires=False)


def redeliveries() -> Iterator[Case]:
    def case(says: str, at: str, again: str, handled: str, *, fires: bool, reason: str = "call") -> Case:
        found = {
            series("metier_duplicates_total", metier_reason=reason): again,
            series("messaging_client_consumed_messages_total", messaging_destination_name="metier.runs"): handled,
        }
        return Case("MetierRedeliveries", says, found, at, alert("MetierRedeliveries", "warning") if fires else ())

    yield case("a quarter of all", "40m", "0+5x60", "0+20x60", fires=True)
    yield case("answers too", "40m", "0+5x60", "0+20x60", reason="answer", fires=True)
    yield case("12 %, and 30 in a quarter of an hour", "40m", "0+2x60", "0+17x60", fires=True)
    yield case("8 %", "40m", "0+8x60", "0+100x60", fires=False)
    yield case("half, but only 15 in a quarter of an hour", "40m", "0+1x60", "0+2x60", fires=False)
    yield case("not yet for 15 minutes", "14m", "0+5x60", "0+20x60", fires=False)
    yield case("one wave, when replicas came and went", "40m", "0x10 90x60", "0+20x60", fires=False)
    yield case("a backend that asks twice", "40m", "0+5x60", "0+20x60", reason="request", fires=False)
    yield case("nothing is handled", "40m", "90x60", "500x60", fires=False)
    yield case("counters begin anew", "40m", "90x30 0x60", "0+20x30 0+20x60", fires=False)


def cost_per_run_high() -> Iterator[Case]:
    """Per ten minutes where the hour counts, per hour where days do."""

    def case(says: str, at: str, cost: str, count: str, *, fires: bool, every: str = "10m") -> Case:
        about = {"gen_ai_workflow_name": "w", "metier_run_state": "succeeded"}
        found = {series("metier_run_cost_USD_sum", **about): cost, series("metier_run_cost_USD_count", **about): count}
        expected = alert("MetierCostPerRunHigh", "warning", gen_ai_workflow_name="w") if fires else ()
        return Case("MetierCostPerRunHigh", says, found, at, expected, every)

    usual, many = "0+0.1x160", "0+5x400"
    yield case("four times as much for two hours", "29h", f"{usual} 16+0.4x50", many, fires=True)
    yield case("not yet for a quarter of an hour", "27h30m", f"{usual} 16+0.7x50", many, fires=False)
    yield case("and then it is", "27h40m", f"{usual} 16+0.7x50", many, fires=True)
    yield case("more than twice as much", "30h", f"{usual} 16+0.26x50", many, fires=False)
    yield case("it is over since two hours", "32h", f"{usual} 16+0.4x18 23.3+0.1x50", many, fires=False)
    yield case("ten times as much, of six runs an hour", "29h", "0+0.02x160 3.2+0.2x50", "0+1x400", fires=False)
    yield case("four times as much, of twelve runs an hour", "30h", "0+0.04x160 6.4+0.16x50", "0+2x400", fires=True)
    yield case("four times as much, on the first day", "20h", "0+0.1x100 10+0.4x50", many, fires=False)
    yield case("what was free costs now", "29h", "0x160 0+0.4x50", many, fires=False)
    yield case("nothing runs", "30h", "30x400", "1500x400", fires=False)
    yield case("counters begin anew", "29h", f"{usual} 0+0.1x50", "0+5x160 0+5x50", fires=False)
    hourly = "0+30x500"
    yield case("it was dear for a day, days ago", "130h", "0+0.6x50 30+2.4x24 87.6+0.6x50 117.6+2.4x9", hourly, fires=True, every="1h")  # fmt: skip
    yield case("it was dear until a week ago", "362h", "0+2.4x190 456+0.6x168 556.8+2.4x9", hourly, fires=True, every="1h")  # fmt: skip
    yield case("it begins again after a week, and is dear", "190h", "0+0.6x9 6x168 6+0.6x8 10.8+2.4x9", "0+30x9 270x168 270+30x50", fires=False, every="1h")  # fmt: skip


def agent_failing() -> Iterator[Case]:
    def case(says: str, at: str, bad: str, good: str, *, fires: bool, error: str = "model_failed") -> Case:
        found = {
            series("gen_ai_invoke_agent_duration_seconds_count", gen_ai_agent_name="coder", error_type=error): bad,
            series("gen_ai_invoke_agent_duration_seconds_count", gen_ai_agent_name="coder"): good,
        }
        expected = alert("MetierAgentFailing", "warning", gen_ai_agent_name="coder") if fires else ()
        return Case("MetierAgentFailing", says, found, at, expected)

    yield case("two of five", "30m", "0+4x60", "0+6x60", fires=True)
    yield case("28 %", "30m", "0+28x60", "0+72x60", fires=True)
    yield case("22 %", "30m", "0+22x60", "0+78x60", fires=False)
    yield case("not yet for 5 minutes", "5m", "0+4x60", "0+6x60", fires=False)
    yield case("four and no more", "50m", "0x42 1 2 3 4x20", "0x80", fires=False)
    yield case("six and no more", "50m", "0x42 2 4 6x20", "0x80", fires=True)
    yield case("four, and more an hour ago", "58m", "0 10x50 11 12 13 14x20", "0x80", fires=False)
    yield case("it is over since 20 minutes", "50m", "0+4x30 120x60", "0+6x80", fires=False)
    yield case("nothing is asked", "50m", "90x80", "100x80", fires=False)
    yield case("counters begin anew", "50m", "90x40 0x60", "0+6x40 0+6x60", fires=False)
    for ordinary in ("cancelled", "held", "limit_reached", "model_refused", "answer_withheld", "CancelledError"):
        yield case(f"{ordinary} is ordinary", "30m", "0+9x60", "0+1x60", error=ordinary, fires=False)


def agent_drifted() -> Iterator[Case]:
    about = {"gen_ai_agent_name": "coder", "metier_category": "maths"}

    def case(says: str, at: str, one: str, two: str = "", *, fires: bool, way: str = "worse") -> Case:
        named = {**about, "metier_drift_way": way}
        found = {series("metier_drift_alarms_total"): "0x100", series("metier_drift_alarms_total", **named): one}
        if two:
            found[series("metier_drift_alarms_total", **named, instance="two")] = two
        expected = alert("MetierAgentDrifted", "warning", **about) if fires else ()
        return Case("MetierAgentDrifted", says, found, at, expected, every="10m")

    yield case("worse, for the first time", "8h10m", "_x48 1x60", fires=True)
    yield case("as each orchestrator tells it", "8h10m", "_x48 1x60", "_x48 1x60", fires=True)
    yield case("worse once more", "8h10m", "1x48 2x60", fires=True)
    yield case("seven hours later", "15h", "_x48 1x60", fires=False)
    yield case("worse once more, seven hours later", "15h", "1x48 2x60", fires=False)
    yield case("better", "8h10m", "_x48 1x60", way="better", fires=False)
    yield case("counters begin anew", "8h10m", "3x47 0x60", fires=False)
    yield case("the replica is gone", "8h10m", "0x60", "3x30 stale", fires=False)


def router_broken() -> Iterator[Case]:
    def case(says: str, at: str, one: str, two: str = "0x100", *, fires: bool) -> Case:
        found = {
            series("metier_routers_broken_total", instance=name): values
            for name, values in (("one", one), ("two", two))
        }
        expected = alert("MetierRouterBroken", "warning") if fires else ()
        return Case("MetierRouterBroken", says, found, at, expected, every="10m")

    yield case("one cannot be loaded", "8h10m", "0x48 1x60", fires=True)
    yield case("as each orchestrator says", "8h10m", "0x48 1x60", "0x48 1x60", fires=True)
    yield case("a new replica finds it so at once", "8h10m", "_x47 1x60", fires=True)
    yield case("seven hours later", "15h", "0x48 1x60", fires=False)
    yield case("found at once, seven hours later", "15h", "_x47 1x60", fires=False)
    yield case("all can be loaded", "15h", "0x100", fires=False)
    yield case("counters begin anew", "8h10m", "1x47 0x60", fires=False)


def checkpoints_failing() -> Iterator[Case]:
    def case(says: str, at: str, failed: str, *, fires: bool, error: str = "defect") -> Case:
        name = "metier_checkpoint_write_duration_seconds_count"
        found = {series(name): "0+50x100", series(name, error_type=error): failed}
        expected = alert("MetierCheckpointsFailing", "critical", error_type=error) if fires else ()
        return Case("MetierCheckpointsFailing", says, found, at, expected)

    yield case("each minute one", "16m", "_x5 1+1x60", fires=True)
    yield case("each four minutes one", "30m", "0x10 1x4 2x4 3x4 4x4 5x4", fires=True)
    yield case("not yet for 10 minutes", "12m", "_x5 1+1x60", fires=False)
    yield case("one alone, the first of its kind", "20m", "_x8 1x60", fires=False)
    yield case("one alone", "20m", "0x9 1x60", fires=False)
    yield case("over for 6 minutes", "37m", "0+1x30 30x60", fires=False)
    yield case("counters begin anew", "50m", "30x40 0x60", fires=False)
    yield case("a replica that lost its run", "30m", "0+1x60", error="fenced_off", fires=False)
    yield case("a role that ends", "30m", "0+1x60", error="CancelledError", fires=False)


def engine_selftest_failing() -> Iterator[Case]:
    def case(says: str, at: str, one: str, *, fires: bool) -> Case:
        found = {
            series("metier_engine_selftest", pod="t-1", instance="a"): one,
            series("metier_engine_selftest", pod="t-2", instance="b"): "1x60",
        }
        expected = alert("MetierEngineSelftestFailing", "critical", pod="t-1", instance="a") if fires else ()
        return Case("MetierEngineSelftestFailing", says, found, at, expected)

    yield case("one runner of two", "9m", "1x5 0x60", fires=True)
    yield case("not yet for 2 minutes", "7m", "1x5 0x60", fires=False)
    yield case("it holds again", "12m", "1x5 0x5 1x60", fires=False)
    yield case("both hold", "30m", "1x60", fires=False)
    yield case("the runner is gone", "20m", "0x1 stale", fires=False)


def leases_expiring() -> Iterator[Case]:
    def case(says: str, at: str, counted: str, *, fires: bool) -> Case:
        found = {
            series("metier_lease_expired_total"): counted,
            series("metier_lease_expired_total", instance="two"): "0x100",
        }
        return Case("MetierLeasesExpiring", says, found, at, alert("MetierLeasesExpiring", "warning") if fires else ())

    yield case("for more than half an hour", "35m", "0+1x80", fires=True)
    yield case("each eight minutes one", "60m", "0x8 1x8 2x8 3x8 4x8 5x8 6x8 7x8", fires=True)
    yield case("not yet for half an hour", "28m", "0+1x80", fires=False)
    yield case("one wave when a replica died", "50m", "0x18 200x80", fires=False)
    yield case("two waves within half an hour", "52m", "0x15 50x20 90x80", fires=False)
    yield case("over for a quarter of an hour", "65m", "0+1x50 50x60", fires=False)
    yield case("counters begin anew", "60m", "50x40 0x60", fires=False)
    yield case("the replica is gone", "60m", "0+1x20 stale", fires=False)


CASES = tuple(
    chain(
        *(runs_failing(), first_step_late(), run_stuck(), role_gone(), oldest_event_late(), consumer_silent()),
        *(dead_letters(), service_away(), redeliveries(), cost_per_run_high(), agent_failing(), agent_drifted()),
        *(router_broken(), checkpoints_failing(), engine_selftest_failing(), leases_expiring()),
    )
)
