"""The metrics of notifications."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

MAILS = Counter("market_notifications_mails_total", "Mails accepted by the mail server.", ["kind"])
MAIL_DURATION = Histogram(
    "market_notifications_mail_duration_seconds",
    "Time from composing a mail until the mail server has accepted it or the attempt has failed.",
)
SKIPPED_EVENTS = Counter("market_notifications_skipped_events_total", "Events for which no mail is sent.", ["reason"])
RETRIES = Counter(
    "market_notifications_retries_total",
    "Scheduled retries of messages, by reason: deferred (by the mail server), internal-error, deferral (the deferred "
    "mail could not be stored) or dead-letter (the dead letter could not be written).",
    ["reason"],
)
DEAD_LETTERS = Counter(
    "market_notifications_dead_letters_total", "Messages written to the dead letter topic.", ["reason"]
)
PAUSED = Gauge("market_notifications_paused", "1 while consumption is paused for this reason.", ["reason"])
LAG = Gauge(
    "market_notifications_lag",
    "Messages after the committed offset, by partition. Every process reports all partitions, including those that are "
    "assigned to other members.",
    ["partition"],
)
ASSIGNED = Gauge("market_notifications_assigned_partitions", "Partitions that are assigned to this process.")
DEFERRED_ASSIGNED = Gauge(
    "market_notifications_deferred_assigned_partitions",
    "Partitions of the topic of deferred mails that are assigned to this process.",
)
STALLED = Gauge(
    "market_notifications_stalled",
    "1 while an assigned partition has unread messages but makes no progress.",
    ["partition"],
)
DEFERRED = Gauge(
    "market_notifications_deferred_mails",
    "Deferred mails, by partition of their topic. Every process reports all partitions, including those that are "
    "assigned to other members.",
    ["partition"],
)
DEFERRED_OLDEST = Gauge(
    "market_notifications_deferred_oldest_seconds",
    "Time since the first deferral of the oldest deferred mail that this process has read in the last few minutes. "
    "0 if there is none.",
)
DEFERRALS = Counter(
    "market_notifications_deferrals_total",
    "Mails written to the topic of deferred mails, by cause.",
    ["cause"],
)
THROTTLED_DOMAINS = Gauge(
    "market_notifications_throttled_domains",
    "Throttled mail domains. Several different mails to them in a row were deferred, so attempts are limited.",
)
DEFERRED_STALLED = Gauge(
    "market_notifications_deferred_stalled",
    "1 while an assigned partition of the topic of deferred mails has unread messages but makes no progress.",
    ["partition"],
)
PROCESSING_STALLED = Gauge(
    "market_notifications_processing_stalled",
    "1 while messages are ready but no attempt finishes, although the mail server is available.",
)
UNSETTLED = Gauge(
    "market_notifications_unsettled_messages",
    "Messages read but not settled: queued, being processed, or waiting for a retry.",
)
UNSETTLED_BYTES = Gauge("market_notifications_unsettled_bytes", "Size of the messages read but not settled.")
OFFSET_RESETS = Counter(
    "market_notifications_offset_resets_total",
    "Offsets that were out of range. The partition was then read again from the first message after the group's first "
    "start.",
)
STARTS_WITHOUT_OFFSET = Counter(
    "market_notifications_starts_without_offset_total",
    "Partitions that had no committed offset when they were assigned, by reason. Offsets that were committed for a "
    "deleted topic of the same name do not count.",
    ["reason"],
)
SENT_LOG_FAILURES = Counter(
    "market_notifications_sent_log_failures_total", "Failed reads and writes of the sent log. Mails may be repeated."
)
COMMIT_FAILURES = Counter(
    "market_notifications_commit_failures_total", "Failed commits of an offset. They are retried."
)

# Initialize every series, so that rate() sees the first increase.
for _reason in ("mail-server", "sender-rejected", "memory"):
    PAUSED.labels(_reason).set(0)
for _reason in ("invalid-event", "rejected", "retries-exhausted"):
    DEAD_LETTERS.labels(_reason)
for _reason in ("first-start", "no-offset", "new-topic"):
    STARTS_WITHOUT_OFFSET.labels(_reason)
for _reason in ("unknown-type", "no-recipient", "invalid-recipient", "duplicate"):
    SKIPPED_EVENTS.labels(_reason)
for _reason in ("deferred", "throttled", "order", "internal-error"):
    DEFERRALS.labels(_reason)
for _reason in ("deferred", "internal-error", "deferral", "dead-letter"):
    RETRIES.labels(_reason)
for _kind in ("created", "cancelled"):
    MAILS.labels(_kind)
