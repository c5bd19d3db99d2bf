"""The service's figures."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

MAILS = Counter("market_notifications_mails_total", "Mails that the mail server accepted.", ["type"])
MAIL_SECONDS = Histogram("market_notifications_mail_seconds", "From the attempt to the mail server's answer.")
SKIPPED = Counter(
    "market_notifications_skipped_total", "Events without a mail: unknown-type, no-address, repeat.", ["reason"]
)
RETRIES = Counter(
    "market_notifications_retries_total",
    "Attempts that are made again later: refused, defect, dead-letter.",
    ["reason"],
)
DEAD_LETTERS = Counter(
    "market_notifications_dead_letters_total", "Messages put aside: unreadable, refused, gave-up.", ["reason"]
)
PAUSED = Gauge("market_notifications_paused", "1 while nothing is read: mail-server, memory.", ["reason"])
LAG = Gauge("market_notifications_lag", "Messages of the partition that are not yet done.", ["partition"])
HELD = Gauge("market_notifications_held_messages", "Messages read and not yet done.")
HELD_BYTES = Gauge("market_notifications_held_bytes", "Bytes read and not yet done.")
RESETS = Counter(
    "market_notifications_offset_resets_total", "Offsets that the broker no longer had: went on from the earliest."
)
COMMIT_FAILURES = Counter("market_notifications_commit_failures_total", "Commits that failed; they are made again.")

for _reason in ("mail-server", "memory"):
    PAUSED.labels(_reason).set(0)
for _reason in ("unreadable", "refused", "gave-up"):
    DEAD_LETTERS.labels(_reason)
for _reason in ("unknown-type", "no-address", "repeat"):
    SKIPPED.labels(_reason)
for _reason in ("refused", "defect", "dead-letter"):
    RETRIES.labels(_reason)
for _reason in ("created", "cancelled"):
    MAILS.labels(_reason)
