"""A run's report for people: what was killed, what clients saw, and the verdict."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from market_dev.chaos.nemesis import Outcome
from market_dev.chaos.runner import Report


def markdown(reports: list[Report], command: str) -> str:
    """The report of one or more runs."""
    lines = ["# The shop under faults", "", f"Made by `{command}`; the same seed draws the same faults.", ""]
    lines += [
        "| seed | Kafka | kills | other faults | orders placed | cancelled | refused | calls | failed calls | events | mails | mails repeated | settled after | verdict |"
    ]
    lines += ["|" + " --- |" * 14]
    for r in reports:
        others = len(r.outcomes) - sum(o.is_kill for o in r.outcomes)
        verdict = "clean" if r.clean else f"{sum(map(len, r.violations.values()))} violations"
        lines.append(
            f"| {r.seed} | {r.kafka} | {r.kills} | {others} | {r.placed} | {r.cancelled} | {r.refused} | {r.calls} | {r.failed_calls} "
            f"| {r.events} | {r.mails} | {r.mails_repeated} | {r.settled_after:.0f} s | {verdict} |"
        )
    lines += ["", "## What was checked", "", "| statement | violations |", "| --- | --- |"]
    for check in reports[0].violations:
        lines.append(f"| {check.replace('_', ' ')} | {sum(len(r.violations[check]) for r in reports)} |")
    for r in reports:
        for check, sentences in r.violations.items():
            lines += [f"- seed {r.seed}, {check}: {sentence}" for sentence in sentences[:20]]
    lines += ["", "## What clients saw, by what died", ""]
    lines += [
        "Failed calls are all calls of all clients that got no answer or a 5xx. The outage goes from the kill to the first order placed after the last of them;"
    ]
    lines += ["`first order` from the moment at which the process was ready again.", ""]
    lines += [
        "| what | times | failed calls: median, most | outage in s: median, longest | first order after ready in s: median, longest | back after s: median, longest |",
        "|" + " --- |" * 6,
    ]
    groups: defaultdict[str, list[Outcome]] = defaultdict(list)
    for r in reports:
        for o in r.outcomes:
            groups[" ".join(o.what.split(" for ")[0].split(" (")[0].split())].append(o)
    for what, found in sorted(groups.items()):
        failed = [o.failed_calls for o in found]
        outage = [o.outage for o in found]
        success = [o.first_success for o in found if o.first_success is not None] or [0.0]
        back = [o.over - o.began for o in found]
        lines.append(
            f"| {what} | {len(found)} | {median(failed):.0f}, {max(failed)} | {median(outage):.2f}, {max(outage):.2f} "
            f"| {median(success):.2f}, {max(success):.2f} | {median(back):.2f}, {max(back):.2f} |"
        )
    lines += ["", "## Everything that was done", ""]
    for r in reports:
        lines += [
            f"<details><summary>seed {r.seed}: {len(r.outcomes)} faults in {r.seconds:.0f} s</summary>",
            "",
            "| # | second | what | orders in flight | failed calls | outage s | hit |",
            "|" + " --- |" * 7,
        ]
        lines += [
            f"| {o.number} | {o.began:.1f} | {o.what} | {o.in_flight} | {o.failed_calls} | {o.outage:.2f} | {'yes' if o.hit else 'no'} |"
            for o in r.outcomes
        ]
        lines += ["", "</details>", ""]
    return "\n".join(lines) + "\n"
