"""The comparison with an earlier commit: what is installed, and how the rounds are reported."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import before, workloads
from benchmarks.comparisons import builds, loads
from benchmarks.measurements import Latency, Measurement


def git(root: Path, *args: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.test"]
    subprocess.run(["git", "-C", root, *identity, *args], check=True, capture_output=True)


def test_the_commit_is_installed_and_not_the_working_tree(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    makefile = tmp_path / "Makefile"
    makefile.write_text("install:\n\t@echo old >> installed\n")
    git(tmp_path, "add", "Makefile")
    git(tmp_path, "commit", "-qm", "old")
    git(tmp_path, "tag", "v1")
    makefile.write_text("install:\n\t@echo new >> installed\n")
    git(tmp_path, "commit", "-qam", "new")

    checkout = builds.install("v1", tmp_path)
    assert builds.install("v1", tmp_path) == checkout

    directory = tmp_path / ".market" / "before" / checkout.commit
    assert checkout.command == directory / ".venv" / "bin" / "market"
    assert (directory / "installed").read_text() == "old\nold\n"
    assert not (tmp_path / "installed").exists()


def test_a_commit_that_is_not_in_the_clone_is_named(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")

    with pytest.raises(builds.NotInRepository, match="commit 8aed7cce613a is not in this clone"):
        builds.install("8aed7cce613a", tmp_path)

    assert not (tmp_path / ".market").exists()


def test_ratios_are_taken_round_by_round() -> None:
    def rounds(*rates: float, cpu_ms: float, p99: float) -> list[Measurement]:
        return [Measurement(value=r, latency=Latency(p99=p99), cpu_ms={"orders": cpu_ms, "kafka": 1}) for r in rates]

    measurements = {
        "ours": rounds(1000, 300, 900, cpu_ms=2, p99=5),
        "before": rounds(1000, 200, 1000, cpu_ms=3, p99=10),
    }
    result = before.Result(ref="v1", commit="abc", machine="a machine", seconds=3, measurements={"order": measurements})

    last_line = before.render(result).splitlines()[-1]

    ratios = "1.00 (0.90 - 1.50) | 0.75 (0.75 - 0.75) | 0.50 (0.50 - 0.50)"
    assert last_line == f"| order | 3 | 900 orders/s | 1,000 orders/s | {ratios} |"


def test_the_latency_of_each_call_has_a_row_of_its_own() -> None:
    def rounds(*p50: float) -> list[Measurement]:
        return [Measurement(value=ms, notes={"calls": {"REST POST": {"p50": ms, "p95": 2 * ms}}}) for ms in p50]

    measurements = {"ours": rounds(5, 4, 6), "before": rounds(10, 10, 10)}
    result = before.Result(
        ref="v1", commit="abc", machine="a machine", seconds=3, measurements={"latency": measurements}
    )

    assert before.render(result).splitlines()[-1] == "| REST POST | 5.0 ms | 10.0 ms | 0.50 (0.40 - 0.60) |"


def test_mails_have_rows_for_cpu_and_for_latency_under_load_and_alone() -> None:
    def rounds(cpu_ms: float, p99: float, lone: float) -> list[Measurement]:
        latency, notes = Latency(p50=p99 / 2, p99=p99), {"lone": {"p50": lone, "p95": 2 * lone}}
        return [Measurement(value=p99, latency=latency, cpu_ms={"orders": cpu_ms, "kafka": 1}, notes=notes)]

    measurements = {"ours": rounds(2, 150, 20), "before": rounds(4, 300, 20)}
    result = before.Result(ref="v1", commit="abc", machine="a machine", seconds=3, measurements={"mail": measurements})

    assert before.render(result).splitlines()[-5:] == [
        "| CPU per order at 300 orders/s, ms | 3 | 5 | 0.60 (0.60 - 0.60) |",
        "| p50 at 300 orders/s, ms | 75 | 150 | 0.50 (0.50 - 0.50) |",
        "| p99 at 300 orders/s, ms | 150 | 300 | 0.50 (0.50 - 0.50) |",
        "| p50 of a lone order, ms | 20 | 20 | 1.00 (1.00 - 1.00) |",
        "| p95 of a lone order, ms | 40 | 40 | 1.00 (1.00 - 1.00) |",
    ]


def test_what_the_same_build_measures_twice_is_shown_as_the_noise() -> None:
    def rounds(lone: float) -> list[Measurement]:
        return [Measurement(value=lone, latency=Latency(p50=lone), notes={"lone": {"p50": lone, "p95": lone}})]

    measurements = {"ours": rounds(20), "before": rounds(25), "ours again": rounds(16)}
    result = before.Result(ref="v1", commit="abc", machine="a machine", seconds=3, measurements={"mail": measurements})

    assert before.render(result).splitlines()[-1] == "| p50 of a lone order, ms | 20 | 16 | 1.25 (1.25 - 1.25) |"


def test_a_cold_start_has_rows_for_its_time_and_for_the_memory_at_rest_by_broker() -> None:
    def rounds(seconds: float, mib: float) -> list[Measurement]:
        return [Measurement(value=seconds, notes={"MiB": mib})]

    measurements = {
        f"cold-start {kafka}": {"ours": rounds(4, 510), "before": rounds(5, 600)} for kafka in ("embedded", "apache")
    }
    result = before.Result(ref="v1", commit="abc", machine="a machine", seconds=3, measurements=measurements)

    assert before.render(result).splitlines()[-4:] == [
        "| cold-start embedded, s | 4 | 5 | 0.80 (0.80 - 0.80) |",
        "| memory at rest after cold-start embedded, MiB | 510 | 600 | 0.85 (0.85 - 0.85) |",
        "| cold-start apache, s | 4 | 5 | 0.80 (0.80 - 0.80) |",
        "| memory at rest after cold-start apache, MiB | 510 | 600 | 0.85 (0.85 - 0.85) |",
    ]


def test_every_scenario_has_a_workload() -> None:
    class Build:
        product_ids = tuple(map(str, range(100)))
        pages = ("/api/product?limit=20",)

    for comparison in loads.COMPARISONS.values():
        load = comparison.load(Build())  # type: ignore[arg-type]
        request = next(workloads.make(load["workload"], load["params"]))
        if load.get("kind") == "grpc":
            headers, message, _ = request
            assert headers
            assert message
        else:
            assert request.startswith((b"GET /", b"POST /"))
