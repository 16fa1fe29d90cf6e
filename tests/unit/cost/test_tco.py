"""Formulas against worked values, and the errata of the requirements (numbers in the ids) as golden figures."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylane.cost.tco import (
    OwnedGpu,
    SimplePreset,
    Waste,
    break_even_months,
    capital_recovery_factor,
    owned_hour,
    usd_per_1k_requests,
    usd_per_million_tokens,
    waste_split,
)

PRESET = SimplePreset()


@pytest.mark.parametrize(
    ("cost_of_capital", "years", "expected"),
    [
        pytest.param(0.10, 4, 0.315471, id="ten percent, four years (annuity table)"),
        pytest.param(0.05, 10, 0.129505, id="five percent, ten years (annuity table)"),
        pytest.param(0.0, 5, 0.2, id="free capital is paid back evenly"),
    ],
)
def test_capital_recovery_factor(cost_of_capital: float, years: float, expected: float) -> None:
    assert capital_recovery_factor(cost_of_capital, years) == pytest.approx(expected, abs=1e-6)


@given(st.floats(0.01, 0.3), st.integers(1, 15))
def test_payments_are_worth_the_loan(cost_of_capital: float, years: int) -> None:
    payment = capital_recovery_factor(cost_of_capital, years)
    present_value = sum(payment / (1 + cost_of_capital) ** year for year in range(1, years + 1))
    assert present_value == pytest.approx(1.0)


H100 = OwnedGpu(
    capex_usd=31_000,
    residual_share=0.0,
    years=4,
    cost_of_capital=0.10,
    it_power_kw=1.384,
    load_share=0.8,
    pue=1.25,
    usd_per_kwh=0.087,
    usd_per_kw_month=130,
    maintenance_usd_per_hour=0.0,
)


def test_owned_hour_by_hand() -> None:
    hour = owned_hour(H100)
    assert hour.capital == pytest.approx(1.116, abs=5e-4)  # 31,000 x 0.315471 / 8760
    assert hour.energy == pytest.approx(0.120, abs=5e-4)  # 1.384 x 0.8 x 1.25 x 0.087
    assert hour.colocation == pytest.approx(0.246, abs=6e-4)  # 1.384 x 130 x 12 / 8760
    assert hour.total == pytest.approx(1.483, abs=5e-4)


def test_residual_value_lowers_capital_by_its_present_value() -> None:
    kept = owned_hour(replace(H100, residual_share=0.2)).capital
    # 6,200 in four years at 10 % are 4,234.7 now, of 31,000.
    assert kept / owned_hour(H100).capital == pytest.approx(1 - 4234.68 / 31_000, abs=1e-5)


def test_half_used_gpus_double_the_cost_of_a_token() -> None:
    assert usd_per_million_tokens(7.2, 1000, 0.5) == pytest.approx(4.0)
    assert usd_per_million_tokens(7.2, 1000) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("one_off", "old", "new", "added", "months"),
    [
        pytest.param(120_000, 50_000, 35_000, 5_000, 12.0, id="12 months"),
        pytest.param(120_000, 50_000, 45_000, 5_000, None, id="nothing saved, never"),
        pytest.param(120_000, 50_000, 60_000, 0, None, id="dearer, never"),
        pytest.param(0, 50_000, 40_000, 0, 0.0, id="free migration pays at once"),
    ],
)
def test_break_even(one_off: float, old: float, new: float, added: float, months: float | None) -> None:
    assert break_even_months(one_off, old, new, added) == months


def test_waste_by_reason() -> None:
    # 12 GPUs at 2 $: 2 nobody holds, 4 of 10 held ones idle, 6 busy at 75 % of capacity.
    split = waste_split(2.0, gpus=12, allocated_gpus=10, busy_gpus=6, used_share=0.75)
    assert split == Waste(unallocated=4.0, idle=8.0, headroom=3.0)
    assert split.total == 15.0


@pytest.mark.parametrize(
    ("allocated", "busy", "used"),
    [
        pytest.param(13, 6, 0.5, id="more allocated than there are"),
        pytest.param(6, 7, 0.5, id="more busy than allocated"),
        pytest.param(6, 6, 1.1, id="over capacity"),
    ],
)
def test_waste_of_impossible_shares(allocated: int, busy: float, used: float) -> None:
    with pytest.raises(ValueError, match=r"does not hold|within 0 and 1"):
        waste_split(2.0, gpus=12, allocated_gpus=allocated, busy_gpus=busy, used_share=used)


@pytest.mark.parametrize("call", [usd_per_million_tokens, usd_per_1k_requests])
def test_no_rate_has_no_cost(call: object) -> None:
    with pytest.raises(ValueError, match="above 0"):
        call(1.0, 0.0)  # type: ignore[operator]


# Errata of the requirements: the figures an honest calculation gives.


def test_erratum_1_monthly_bill() -> None:
    old = PRESET.monthly_usd(32.77 / 8, gpus=8, power_w=400)
    new = PRESET.monthly_usd(16.32 / 4, gpus=8, power_w=300)
    assert [old, new] == pytest.approx([24_314.55, 24_121.54], abs=0.005)
    assert 1 - new / old == pytest.approx(0.008, abs=5e-4)


def test_erratum_1_per_token() -> None:
    old = PRESET.usd_per_million_tokens(32.77 / 8, gpus=8, power_w=400, tokens_per_s_per_gpu=1240)
    new = PRESET.usd_per_million_tokens(16.32 / 4, gpus=8, power_w=300, tokens_per_s_per_gpu=1890)
    assert [old, new] == pytest.approx([0.9327, 0.6071], abs=5e-5)
    assert 1 - new / old == pytest.approx(0.349, abs=5e-4)


@pytest.mark.parametrize(
    ("usd_per_hour", "requests_per_s", "expected"),
    [
        pytest.param(32.77, 142, 0.0641, id="erratum 2: p4d"),
        pytest.param(9.87, 118, 0.0232, id="erratum 2: g6"),
        pytest.param(3.42, 97, 0.0098, id="erratum 2: inferentia3"),
        pytest.param(5.67, 68, 0.0232, id="erratum 2: g5"),
    ],
)
def test_erratum_2_per_1k_inferences(usd_per_hour: float, requests_per_s: float, expected: float) -> None:
    assert usd_per_1k_requests(usd_per_hour, requests_per_s) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("old", "new", "gain"),
    [
        pytest.param((1.50, 45), (2.00, 75), 1.25, id="erratum 3: 7B"),
        pytest.param((3.00, 35), (2.00, 65), 2.79, id="erratum 3: 13B"),
        pytest.param((4.00, 15), (2.60, 75), 7.69, id="erratum 3: 70B"),
        pytest.param((8.00, 8), (5.20, 45), 8.65, id="erratum 3: 175B"),
        pytest.param((4.00, 25), (2.60, 75), 4.62, id="erratum 3: 4.6x belongs to 25 tok/s"),
    ],
)
def test_erratum_3_gain_per_token(old: tuple[float, float], new: tuple[float, float], gain: float) -> None:
    assert usd_per_million_tokens(*old) / usd_per_million_tokens(*new) == pytest.approx(gain, abs=0.005)


def test_erratum_3_per_million() -> None:
    assert usd_per_million_tokens(4.00, 25) == pytest.approx(44.44, abs=0.005)
    assert usd_per_million_tokens(2.60, 75) == pytest.approx(9.63, abs=0.005)


@pytest.mark.parametrize(
    ("h200", "l40s", "dearer"),
    [
        pytest.param((400_000, 64_000), (70_000, 54_000), 4.8, id="erratum 5: 7B"),
        pytest.param((400_000, 18_000), (70_000, 13_200), 4.2, id="erratum 5: 70B"),
    ],
)
def test_erratum_5_capital_per_token(h200: tuple[float, float], l40s: tuple[float, float], dearer: float) -> None:
    # Same years and cost of capital on both sides, so capital per token compares as price over throughput does.
    hourly = [
        owned_hour(OwnedGpu(usd, 0, 4, 0.1, 0, 0, 1, 0, 0, 0)).total / tokens_per_s
        for usd, tokens_per_s in (h200, l40s)
    ]
    assert hourly[0] / hourly[1] == pytest.approx(dearer, abs=0.05)


def test_erratum_6_monthly_fleet() -> None:
    old = PRESET.monthly_usd(32.77, gpus=42, power_w=0)
    new = PRESET.monthly_usd(9.87, gpus=28, power_w=0) + PRESET.monthly_usd(3.42, gpus=12, power_w=0)
    assert old == pytest.approx(1.005e6, rel=5e-4)
    assert new == pytest.approx(231.7e3, rel=5e-4)


def test_erratum_7_waste() -> None:
    assert PRESET.wasted_share(0.22) == pytest.approx(0.725)
    quarter_usd = 3 * 342_000  # claimed as waste: 1.02 M, all of it
    assert PRESET.wasted_share(0.22) * quarter_usd == pytest.approx(743_850)
    assert (PRESET.wasted_share(0.80), PRESET.wasted_share(0.95)) == (0.0, 0.0)


def test_erratum_8_l4_per_dollar() -> None:
    gain = usd_per_1k_requests(32.77, 142) / usd_per_1k_requests(9.87, 118)
    assert gain == pytest.approx(2.76, abs=0.005)
    shares = [usd_per_1k_requests(1, 142) / usd_per_1k_requests(1, requests_per_s) for requests_per_s in (118, 97)]
    assert shares == pytest.approx([0.83, 0.68], abs=0.005)


def test_erratum_10_case_study() -> None:
    assert PRESET.monthly_usd(16.32, gpus=6, power_w=0) == pytest.approx(71.5e3, rel=1e-3)
