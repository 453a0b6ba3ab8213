"""SUV factors: by hand, by law, and refused. Every guard of `suv` and `suv_timing` has a test that trips it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg_runtime.errors import InputError
from petseg_runtime.io.suv import FrameTiming, SuvAttributes, is_convertible, merge_attributes, suvbw_factor
from petseg_runtime.io.suv_timing import average_activity_time_s

HALF_LIFE_S = 6586.2
SCAN = datetime(2024, 2, 29, 11, 49, 46, 200_000)  # one half-life after ten o'clock
INJECTION = datetime(2024, 2, 29, 10, 0, 0)
FRAME = FrameTiming(acquisition=SCAN, frame_reference_s=0.0, duration_s=120.0)

# 70 kg, 350 MBq halved once: 70 000 g / 175e6 Bq = 4e-4; not halved: 2e-4.
START = SuvAttributes(
    units="BQML",
    decay_correction="START",
    corrected_image=("ATTN", "DECY"),
    manufacturer="SYNTHETIC",
    weight_kg=70.0,
    dose=350e6,
    half_life_s=HALF_LIFE_S,
    radionuclide=("FDG", "C-111A1", "^18^Fluorine"),
    injection_datetime=INJECTION,
    injection_time=INJECTION.time(),
    series_start=SCAN,
    frames=(FRAME,),
)
ADMIN = replace(START, decay_correction="ADMIN")


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def later_series(attributes: SuvAttributes = START, **frame: float | None) -> SuvAttributes:
    """A series whose SeriesTime was overwritten an hour after the scan."""
    return replace(attributes, series_start=SCAN + seconds(3600), frames=(replace(FRAME, **frame),))


# --- values ------------------------------------------------------------------------------------------


def test_start_decays_the_dose_to_the_scan() -> None:
    factor, note = suvbw_factor(START)
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "70 kg / 350 MBq" in note
    assert "6586 s" in note
    assert "SeriesTime (0008,0031)" in note


def test_admin_does_not_decay_the_dose() -> None:
    factor, note = suvbw_factor(ADMIN)
    assert factor == pytest.approx(2e-4, rel=1e-12)
    assert "not decayed" in note


def test_admin_needs_neither_times_nor_half_life() -> None:
    bare = replace(ADMIN, half_life_s=None, injection_datetime=None, injection_time=None, series_start=None, frames=())
    assert suvbw_factor(bare).factor == pytest.approx(2e-4, rel=1e-12)


@pytest.mark.parametrize(("suv_type", "said"), [("BW", "SUVType (0054,1006) BW"), ("", "which stands for BW")])
def test_body_weight_suv_is_taken_as_it_is(suv_type: str, said: str) -> None:
    factor, note = suvbw_factor(SuvAttributes(units="GML", suv_type=suv_type))
    assert factor == 1.0
    assert said in note


def test_a_dose_in_mbq_is_read_as_such_and_said() -> None:
    factor, note = suvbw_factor(replace(START, dose=350.0))
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "RadionuclideTotalDose (0018,1074) is 350, read as MBq" in note


@pytest.mark.parametrize("attributes", [replace(START, injection_time=None), replace(START, injection_datetime=None)])
def test_either_time_of_injection_will_do(attributes: SuvAttributes) -> None:
    assert suvbw_factor(attributes).factor == pytest.approx(4e-4, rel=1e-12)


def test_an_injection_clock_after_the_scan_is_of_the_day_before() -> None:
    scan = datetime(2024, 3, 1, 0, 30)
    attributes = replace(
        START, injection_datetime=None, injection_time=time(23, 30), series_start=scan, frames=(FrameTiming(scan),)
    )
    # One hour: 70 000 / (350e6 * 2^(-3600/6586.2)).
    assert suvbw_factor(attributes).factor == pytest.approx(2e-4 * 2 ** (3600 / HALF_LIFE_S), rel=1e-12)


def test_gallium_is_decayed_with_its_own_half_life() -> None:
    gallium = replace(START, half_life_s=4057.7, radionuclide=("Ga68-PSMA", "C-131A1", "^68^Gallium"))
    assert suvbw_factor(gallium).factor == pytest.approx(2e-4 * 2 ** (HALF_LIFE_S / 4057.7), rel=1e-12)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (START, True),
        (SuvAttributes(units="GML"), True),
        (SuvAttributes(units="GML", suv_type="LBM"), False),
        (SuvAttributes(units="CNTS"), False),
    ],
)
def test_is_convertible(attributes: SuvAttributes, expected: bool) -> None:
    assert is_convertible(attributes) is expected


# --- where the scan started --------------------------------------------------------------------------


def test_the_private_date_time_goes_before_an_overwritten_series_time() -> None:
    attributes = replace(later_series(), private_scan_start=SCAN, manufacturer="GE MEDICAL SYSTEMS")
    factor, note = suvbw_factor(attributes)
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "(0009,100D)" in note


@pytest.mark.parametrize("days", [-23, 2, 4000])
def test_a_private_date_time_of_another_day_is_not_believed(days: int) -> None:
    """De-identification shifted the public dates and forgot the private one (as in ACRIN-NSCLC-FDG-PET)."""
    attributes = replace(START, private_scan_start=SCAN + timedelta(days=days))
    assert suvbw_factor(attributes).factor == pytest.approx(4e-4, rel=1e-12)


def test_series_time_is_compared_with_the_first_of_the_beds() -> None:
    beds = tuple(FrameTiming(SCAN + seconds(150 * bed), 999.0, 120.0) for bed in (3, 0, 1, 2))
    assert suvbw_factor(replace(START, frames=beds)).factor == pytest.approx(4e-4, rel=1e-12)


def test_an_overwritten_series_time_is_replaced_by_acquisition_minus_frame_reference() -> None:
    """The slices are of a bed that began 30 min into the scan, and FrameReferenceTime is its average activity."""
    average_s = average_activity_time_s(120.0, HALF_LIFE_S)
    attributes = later_series(
        acquisition=SCAN + seconds(1800),
        frame_reference_s=1800 + average_s,
        duration_s=120.0,  # type: ignore[arg-type]
    )
    factor, note = suvbw_factor(attributes)
    assert factor == pytest.approx(4e-4, rel=1e-9)
    assert "FrameReferenceTime (0054,1300)" in note


@pytest.mark.parametrize("manufacturer", ["GE MEDICAL SYSTEMS", "GEMS", "GE"])
def test_ge_counts_frame_reference_to_the_start_of_the_frame(manufacturer: str) -> None:
    attributes = later_series(
        replace(START, manufacturer=manufacturer),
        acquisition=SCAN + seconds(1800),  # type: ignore[arg-type]
        frame_reference_s=1800.0,
        duration_s=None,
    )
    assert suvbw_factor(attributes).factor == pytest.approx(4e-4, rel=1e-12)


def test_a_series_time_before_the_scan_is_replaced_as_well() -> None:
    attributes = replace(START, series_start=SCAN - seconds(600), frames=(replace(FRAME, frame_reference_s=59.98),))
    assert suvbw_factor(attributes).factor == pytest.approx(4e-4, rel=1e-4)


def test_without_frame_reference_a_series_time_before_the_scan_is_taken() -> None:
    frame = FrameTiming(SCAN + seconds(600))
    factor, note = suvbw_factor(replace(START, frames=(frame,)))
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "before the first AcquisitionTime" in note


def test_average_activity_is_a_little_before_the_middle() -> None:
    # Bateman over one half-life: ln(ln 2 / (1 - 1/2)) / ln 2 = 0.4712 half-lives.
    assert average_activity_time_s(HALF_LIFE_S, HALF_LIFE_S) == pytest.approx(0.47123 * HALF_LIFE_S, rel=1e-4)
    assert average_activity_time_s(1e-5, HALF_LIFE_S) == pytest.approx(0.5e-5, rel=1e-6)


# --- what is refused ---------------------------------------------------------------------------------

REFUSED: list[tuple[str, SuvAttributes, str]] = [
    ("units absent", replace(START, units=""), r"Units \(0054,1001\) is absent, expected BQML or GML"),
    *(
        (f"units {units}", replace(START, units=units), rf"Units \(0054,1001\) is {units}, expected BQML or GML")
        for units in ("CNTS", "PROPCNTS", "CM2ML", "CPS", "PCNT")
    ),
    *(
        (
            f"SUV type {kind}",
            SuvAttributes(units="GML", suv_type=kind),
            rf"SUVType \(0054,1006\) is {kind}, expected BW",
        )
        for kind in ("LBM", "LBMJAMES128", "LBMJANMA", "IBW", "BSA")
    ),
    ("no decay correction", replace(START, decay_correction="NONE"), r"DecayCorrection \(0054,1102\) is NONE"),
    ("decay correction absent", replace(START, decay_correction=""), r"DecayCorrection \(0054,1102\) is absent"),
    ("decay denied", replace(START, corrected_image=("ATTN",)), r"CorrectedImage \(0028,0051\) does not list DECY"),
    (
        "weight absent",
        replace(START, weight_kg=None),
        r"^PatientWeight \(0010,1030\) is absent, so SUV cannot be computed\. Pass a series that carries it\.$",
    ),
    ("weight 0", replace(START, weight_kg=0.0), r"PatientWeight \(0010,1030\) is 0 kg, expected 1 to 400 kg"),
    ("weight in g", replace(START, weight_kg=70e3), r"PatientWeight \(0010,1030\) is 70000 kg"),
    ("weight NaN", replace(START, weight_kg=math.nan), r"PatientWeight \(0010,1030\) is nan"),
    ("weight absent, ADMIN", replace(ADMIN, weight_kg=None), r"PatientWeight \(0010,1030\) is absent"),
    ("dose absent", replace(START, dose=None), r"RadionuclideTotalDose \(0018,1074\) is absent"),
    ("dose 0", replace(START, dose=0.0), r"RadionuclideTotalDose \(0018,1074\) is 0, expected"),
    ("dose negative", replace(START, dose=-3.5e8), r"RadionuclideTotalDose \(0018,1074\) is -3.5e\+08, expected"),
    ("dose in mCi", replace(START, dose=10.0), r"RadionuclideTotalDose \(0018,1074\) is 10, .* MBq or mCi"),
    ("dose in kBq", replace(START, dose=350e3), r"RadionuclideTotalDose \(0018,1074\) is 350000, expected"),
    ("dose too large", replace(START, dose=1e12), r"RadionuclideTotalDose \(0018,1074\) is 1e\+12, expected"),
    ("two injections", replace(START, injections=2), r"InformationSequence \(0054,0016\) has 2 items"),
    ("half-life absent", replace(START, half_life_s=None), r"RadionuclideHalfLife \(0018,1075\) is absent"),
    ("half-life 0", replace(START, half_life_s=0.0), r"RadionuclideHalfLife \(0018,1075\) is 0 s"),
    ("half-life in min", replace(START, half_life_s=109.77), r"is 109.77 s, expected 6586.2 s of F-18"),
    ("half-life of another", replace(ADMIN, half_life_s=4057.7), r"is 4057.7 s, expected 6586.2 s of F-18"),
    (
        "injection absent",
        replace(START, injection_datetime=None, injection_time=None),
        r"DateTime \(0018,1078\) and RadiopharmaceuticalStartTime \(0018,1072\) are absent",
    ),
    ("clocks disagree", replace(START, injection_time=time(10, 30)), r"are 30.0 min apart"),
    (
        "injection after scan",
        replace(START, injection_datetime=SCAN + seconds(360), injection_time=None),
        r"\(0018,1078\) is -0.10 h before the scan start",
    ),
    (
        "injection days before",
        replace(START, injection_datetime=INJECTION - timedelta(days=2)),
        r"\(0018,1078\) is 49.83 h before the scan start, expected 0 to 10.98 h",
    ),
    (
        "clock 12 h off",
        replace(START, injection_datetime=None, injection_time=time(22, 0)),
        r"\(0018,1072\) is 13.83 h before the scan start",
    ),
    (
        "more than a day",
        replace(START, half_life_s=282_276.0, radionuclide=("Zr89",), injection_datetime=INJECTION - timedelta(days=3)),
        r"expected 0 to 24.00 h",
    ),
    (
        "day of injection unknown",
        replace(START, half_life_s=282_276.0, radionuclide=("Zr89",), injection_datetime=None),
        r"half-life of 78 h",
    ),
    ("no slices", replace(START, frames=()), r"AcquisitionTime \(0008,0032\) is absent"),
    (
        "acquisition absent",
        replace(START, frames=(FRAME, FrameTiming())),
        r"AcquisitionDate \(0008,0022\) or AcquisitionTime \(0008,0032\) is absent",
    ),
    ("no frame reference", later_series(frame_reference_s=None), r"FrameReferenceTime \(0054,1300\) is absent"),
    ("no duration", later_series(duration_s=None), r"ActualFrameDuration \(0018,1242\) is absent"),
    ("duration 0", later_series(duration_s=0.0), r"ActualFrameDuration \(0018,1242\) is 0 s"),
    ("frame reference negative", later_series(frame_reference_s=-5.0), r"FrameReferenceTime \(0054,1300\) is -5 s"),
    (
        "start after the scan",
        later_series(frame_reference_s=0.0, duration_s=300.0),
        r"150 s after the first acquisition",
    ),
    (
        "beds disagree",
        replace(
            later_series(), frames=(replace(FRAME, frame_reference_s=60.0), replace(FRAME, frame_reference_s=900.0))
        ),
        r"does not lead to one scan start \(spread 840 s",
    ),
]


@pytest.mark.parametrize(("attributes", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(attributes: SuvAttributes, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        suvbw_factor(attributes)
    message = str(refused.value)
    assert "\n" not in message
    assert "Pass a series" in message
    assert "2024" not in message  # a date belongs to a patient


@pytest.mark.parametrize("name", ["18F", "F-18", "^18^Fluorine", "Fluorine-18", "Fluorodeoxyglucose F^18^", "77004003"])
def test_every_name_of_f18_is_known(name: str) -> None:
    with pytest.raises(InputError, match="F-18"):
        suvbw_factor(replace(START, half_life_s=109.77, radionuclide=(name,)))


def test_slices_that_differ_in_a_series_attribute_are_refused() -> None:
    with pytest.raises(InputError, match=r"PatientWeight \(0010,1030\) has 2 different values"):
        merge_attributes([START, replace(START, weight_kg=71.0)])


def test_timings_are_collected_over_the_slices() -> None:
    other = FrameTiming(SCAN + seconds(150))
    merged = merge_attributes([START, replace(START, frames=(other,)), START])
    assert merged == replace(START, frames=(FRAME, other))


# --- laws --------------------------------------------------------------------------------------------

WEIGHTS = st.floats(1.0, 400.0)
DOSES = st.floats(1e6, 1e10)
DELAYS = st.floats(0.0, 6 * HALF_LIFE_S - 1)


@given(weight_kg=WEIGHTS, dose=DOSES, delay_s=DELAYS)
def test_the_factor_is_weight_over_decayed_dose(weight_kg: float, dose: float, delay_s: float) -> None:
    attributes = replace(
        START, weight_kg=weight_kg, dose=dose, injection_datetime=SCAN - seconds(delay_s), injection_time=None
    )
    expected = 1000 * weight_kg / (dose * math.exp(-math.log(2) * delay_s / HALF_LIFE_S))
    assert suvbw_factor(attributes).factor == pytest.approx(expected, rel=1e-9)


@given(delay_s=st.floats(0.0, 4 * HALF_LIFE_S))
def test_a_half_life_more_doubles_the_factor(delay_s: float) -> None:
    one = replace(START, injection_datetime=SCAN - seconds(delay_s), injection_time=None)
    two = replace(one, injection_datetime=SCAN - seconds(delay_s + HALF_LIFE_S))
    assert suvbw_factor(two).factor == pytest.approx(2 * suvbw_factor(one).factor, rel=1e-9)


@given(weight_kg=st.floats(1.0, 200.0), dose=st.floats(1e6, 5e9))
def test_twice_the_weight_with_twice_the_dose_is_the_same(weight_kg: float, dose: float) -> None:
    one = replace(ADMIN, weight_kg=weight_kg, dose=dose)
    two = replace(ADMIN, weight_kg=2 * weight_kg, dose=2 * dose)
    assert suvbw_factor(two).factor == pytest.approx(suvbw_factor(one).factor, rel=1e-12)


@given(minutes=st.integers(1, 600), clock=st.times())
def test_time_alone_equals_date_and_time(minutes: int, clock: time) -> None:
    """Whatever the hour, also over midnight."""
    scan = datetime.combine(datetime(2024, 2, 29), clock)
    moment = scan - timedelta(minutes=minutes)
    both = replace(
        START, injection_datetime=moment, injection_time=None, series_start=scan, frames=(FrameTiming(scan),)
    )
    only_time = replace(both, injection_datetime=None, injection_time=moment.time())
    assert suvbw_factor(only_time).factor == suvbw_factor(both).factor


@given(duration_s=st.floats(1.0, 7200.0), half_life_s=st.floats(60.0, 1e6))
def test_average_activity_lies_between_the_start_and_the_middle(duration_s: float, half_life_s: float) -> None:
    average_s = average_activity_time_s(duration_s, half_life_s)
    assert 0 < average_s <= duration_s / 2 * (1 + 1e-9)
    # Its definition: the activity at that moment is the mean over the frame.
    rate = math.log(2) / half_life_s
    mean = -math.expm1(-rate * duration_s) / (rate * duration_s)
    assert math.exp(-rate * average_s) == pytest.approx(mean, rel=1e-9)
