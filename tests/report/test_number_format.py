"""Numbers are printed as people read them; what was not measured is a dash, never 0."""

import pytest

from lowbit_vit.report import number_format


@pytest.mark.parametrize(
    ("value", "text"), [(0.41234, "0.412"), (4.1234, "4.12"), (41.234, "41.2"), (4123.4, "4,123"), (None, number_format.DASH)]
)
def test_milliseconds_keep_three_digits(value: float | None, text: str) -> None:
    assert number_format.milliseconds(value) == text


@pytest.mark.parametrize("print_value", [number_format.number, number_format.percent, number_format.points, number_format.probability])
def test_what_was_not_measured_is_a_dash(print_value: object) -> None:
    assert callable(print_value)
    assert print_value(None) == number_format.DASH


def test_rates_are_percentages_and_differences_carry_a_sign() -> None:
    assert number_format.percent(0.98665) == "98.67"
    assert number_format.points(-0.00167) == "\N{MINUS SIGN}0.17"
    assert number_format.points(0.0) == "+0.00"


def test_a_p_value_is_never_0() -> None:
    assert number_format.probability(1e-12) == "< 0.001"
    assert number_format.probability(0.0654) == "0.065"


def test_the_status_names_the_seeds_without_a_result() -> None:
    row = {"status": "success", "reason": "oom: 4 GiB", "failed_seeds": "1 2"}
    assert number_format.status_words(row) == "success; seeds 1 2: oom: 4 GiB"
    assert number_format.status_words({"status": "success", "reason": None, "failed_seeds": None}) == "success"
    assert number_format.status_words({"status": "skipped", "reason": "skipped: needs CUDA", "failed_seeds": "0"}) == "skipped: needs CUDA"
