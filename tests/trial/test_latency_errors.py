"""Six processes in rounds are right often enough, both ways, for latencies that differ between processes as those of an H200 do."""

import pytest

from latency_errors import simulate


@pytest.mark.parametrize("kind", ["graph, 1 %", "eager"])
def test_of_six_processes_few_alarms_are_false_and_intervals_cover(kind: str) -> None:
    found = simulate(kind, processes=6, runs=100)
    assert found["false"] <= 0.08  # 2 of 64 on average
    assert found["covers"] >= 0.92
    assert found["ratio_covers"] >= 0.92


def test_five_percent_between_two_graphs_are_found_with_six_processes_and_never_with_three() -> None:
    assert simulate("graph, 1 %", processes=6, runs=60)["found"] >= 0.8
    assert simulate("graph, 0.3 %", processes=3, runs=20)["found"] == 0
