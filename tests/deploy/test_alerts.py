"""The alerts refer to metrics that exist. `promtool test rules` tests when they fire (deploy/alerts/*.test.yaml)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from market.kit.auth import metrics as auth_metrics
from market.kit.http import admission
from market.kit.process import health, tasks
from market.notifications import metrics
from tests.deploy.conftest import ROOT

ALERTS = [path for path in (ROOT / "deploy" / "alerts").glob("*.yaml") if not path.name.endswith(".test.yaml")]
RULES: list[dict[str, Any]] = [
    rule for path in ALERTS for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
]
_METRIC = re.compile(r"\bmarket_\w+")


def _known_metrics() -> set[str]:
    # Imported, so that their metrics are registered.
    assert metrics.LAG
    assert tasks.FAILURES
    assert admission.REFUSED
    assert auth_metrics.REFUSED
    assert health.Health
    families = list(REGISTRY.collect())
    return {f.name + suffix for f in families for suffix in (("_total",) if f.type == "counter" else ("",))}


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_refers_to_metrics_that_exist_and_says_what_is_wrong(rule: dict[str, Any]) -> None:
    assert set(_METRIC.findall(rule["expr"])) <= _known_metrics()
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_runbook_has_every_metric_of_the_alerts() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text().partition("## Runbook")[2]
    used = {name for rule in RULES for name in _METRIC.findall(rule["expr"])}
    assert sorted(name for name in used if name not in runbook) == []
