"""SUV factors: by hand, by law, and refused. Every guard of `suv` and `suv_timing` has a test that trips it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg_runtime.errors import InputError, UsageError
from petseg_runtime.io.suv import Frame, SuvAttributes, SuvOverrides, is_convertible, merge_attributes, suvbw_factors
from petseg_runtime.io.suv_attributes import NO_OVERRIDES
from petseg_runtime.io.suv_timing import average_activity_time_s

HALF_LIFE_S = 6586.2
SCAN = datetime(2024, 2, 29, 11, 49, 46, 200_000)  # one half-life after ten o'clock
INJECTION = datetime(2024, 2, 29, 10, 0, 0)
FRAME = Frame(acquisition=SCAN, frame_reference_s=0.0, duration_s=120.0)

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
NONE = replace(START, decay_correction="NONE", corrected_image=("ATTN",))
ZIRCONIUM = replace(START, half_life_s=282_276.0, radionuclide=("Zr89",), injection_time=None)
LEAN = SuvAttributes(units="GML", suv_type="LBMJANMA", weight_kg=70.0, height_m=1.75, sex="M", frames=(FRAME,))
SURFACE = SuvAttributes(units="CM2ML", weight_kg=70.0, height_m=1.75, frames=(FRAME,))


# Injected on another day, and at an hour at which nobody injects for this scan.
ADRIFT = replace(START, injection_datetime=datetime(2024, 2, 27, 22, 0), injection_time=None)
# What the tests give a moment of injection: a scan at ten to twelve, and one at midnight.
EARLY = replace(START, injection_time=None)
MIDNIGHT = SCAN.replace(hour=0, minute=0, second=0, microsecond=0)
AT_MIDNIGHT = replace(
    START, injection_datetime=None, series_start=MIDNIGHT, frames=(replace(FRAME, acquisition=MIDNIGHT),)
)


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def philips(suv: float | None = None, activity: float | None = None) -> SuvAttributes:
    """A series in counts, with Philips' factors to SUVbw and to Bq/ml."""
    frame = replace(FRAME, philips_suv=suv, philips_activity=activity)
    return replace(START, units="CNTS", manufacturer="PHILIPS", frames=(frame,))


def later_series(attributes: SuvAttributes = START, **frame: float | None) -> SuvAttributes:
    """A series whose SeriesTime was overwritten an hour after the scan."""
    return replace(attributes, series_start=SCAN + seconds(3600), frames=(replace(FRAME, **frame),))


# Two beds whose FrameReferenceTime does not lead to one start, and a SeriesTime that was written anew.
BEDS = replace(
    later_series(),
    manufacturer="GE MEDICAL SYSTEMS",
    frames=(Frame(SCAN + seconds(600), frame_reference_s=300.0), Frame(SCAN + seconds(900), frame_reference_s=0.0)),
)


def factor_and_note(attributes: SuvAttributes, overrides: SuvOverrides = NO_OVERRIDES) -> tuple[float, str]:
    """The factor that all slices share, and where it is from."""
    factors = suvbw_factors(attributes, overrides)
    (factor,) = set(factors.per_frame)
    return factor, factors.note


def factor_of(attributes: SuvAttributes, overrides: SuvOverrides = NO_OVERRIDES) -> float:
    return factor_and_note(attributes, overrides)[0]


# --- values ------------------------------------------------------------------------------------------


def test_start_decays_the_dose_to_the_scan() -> None:
    factor, note = factor_and_note(START)
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "70 kg / 350 MBq" in note
    assert "6586 s" in note
    assert "SeriesTime (0008,0031)" in note


def test_slices_that_were_sent_to_another_process_are_alike_as_before() -> None:
    """Two NaN, which stand for malformed numbers, are one object here and two there."""
    here = [SuvAttributes(units="GML", suv_type="BW", weight_kg=math.nan, frames=(FRAME,))] * 2
    sent = [replace(one, weight_kg=float("nan")) for one in here]
    assert suvbw_factors(merge_attributes(here)) == suvbw_factors(merge_attributes(sent))


def test_admin_does_not_decay_the_dose() -> None:
    factor, note = factor_and_note(ADMIN)
    assert factor == pytest.approx(2e-4, rel=1e-12)
    assert "not decayed" in note


def test_admin_needs_neither_times_nor_half_life() -> None:
    bare = replace(ADMIN, half_life_s=None, injection_datetime=None, injection_time=None, series_start=None, frames=())
    assert factor_of(bare) == pytest.approx(2e-4, rel=1e-12)


@pytest.mark.parametrize(("suv_type", "said"), [("BW", "SUVType (0054,1006) BW"), ("", "which stands for BW")])
def test_body_weight_suv_is_taken_as_it_is(suv_type: str, said: str) -> None:
    factor, note = factor_and_note(SuvAttributes(units="GML", suv_type=suv_type))
    assert factor == 1.0
    assert said in note


def test_a_dose_in_mbq_is_read_as_such_and_said() -> None:
    factor, note = factor_and_note(replace(START, dose=350.0))
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "RadionuclideTotalDose (0018,1074) is 350, read as MBq" in note


@pytest.mark.parametrize("attributes", [replace(START, injection_time=None), replace(START, injection_datetime=None)])
def test_either_time_of_injection_will_do(attributes: SuvAttributes) -> None:
    assert factor_of(attributes) == pytest.approx(4e-4, rel=1e-12)


def test_an_injection_clock_after_the_scan_is_of_the_day_before() -> None:
    scan = datetime(2024, 3, 1, 0, 30)
    attributes = replace(
        START, injection_datetime=None, injection_time=time(23, 30), series_start=scan, frames=(Frame(scan),)
    )
    # One hour: 70 000 / (350e6 * 2^(-3600/6586.2)).
    assert factor_of(attributes) == pytest.approx(2e-4 * 2 ** (3600 / HALF_LIFE_S), rel=1e-12)


def test_gallium_is_decayed_with_its_own_half_life() -> None:
    gallium = replace(START, half_life_s=4057.7, radionuclide=("Ga68-PSMA", "C-131A1", "^68^Gallium"))
    assert factor_of(gallium) == pytest.approx(2e-4 * 2 ** (HALF_LIFE_S / 4057.7), rel=1e-12)


# By hand, for 70 kg and 1.75 m: (W/H)² = (70/175)² = 0.16 kg²/cm², BMI = 70/1.75² = 22.857 kg/m².
@pytest.mark.parametrize(
    ("suv_type", "sex", "mass_kg"),
    [
        ("LBM", "M", 77 - 120 * 0.16),
        ("LBM", "F", 74.9 - 148 * 0.16),
        ("LBMJAMES128", "M", 77 - 128 * 0.16),
        ("LBMJAMES128", "F", 74.9 - 148 * 0.16),
        ("LBMJAMES128", "O", (56.52 + 51.22) / 2),
        ("LBMJANMA", "M", 9270 * 70 / (6680 + 216 * 22.857142857)),
        ("LBMJANMA", "F", 9270 * 70 / (8780 + 244 * 22.857142857)),
        ("IBW", "M", 48 + 1.06 * 23),
        ("IBW", "F", 45.5 + 0.91 * 23),
        ("IBW", "O", (72.38 + 66.43) / 2),
    ],
)
def test_suv_of_a_lean_or_ideal_mass_is_turned_to_body_weight(suv_type: str, sex: str, mass_kg: float) -> None:
    factor, note = factor_and_note(replace(LEAN, suv_type=suv_type, sex=sex))
    assert factor == pytest.approx(70 / mass_kg, rel=1e-9)
    assert f"SUVType (0054,1006) {suv_type}" in note


@pytest.mark.parametrize("suv_type", ["", "BSA"])
def test_suv_of_body_surface_is_turned_to_body_weight(suv_type: str) -> None:
    # Du Bois' own formula gives 1.8481 m² for 70 kg and 175 cm.
    assert factor_of(replace(SURFACE, suv_type=suv_type)) == pytest.approx(70_000 / 18_481, rel=1e-4)


def test_voxels_that_are_not_corrected_refer_to_the_average_of_their_frame() -> None:
    """Two beds, the second one half-life later: its activity has halved, so its factor is twice the first one's."""
    beds = (FRAME, replace(FRAME, acquisition=SCAN + seconds(HALF_LIFE_S)))
    one, two = suvbw_factors(replace(NONE, frames=beds)).per_frame
    average_s = average_activity_time_s(120.0, HALF_LIFE_S)
    assert one == pytest.approx(4e-4 * 2 ** (average_s / HALF_LIFE_S), rel=1e-9)
    assert two == pytest.approx(2 * one, rel=1e-9)


def test_a_list_of_corrections_that_contradicts_none_is_warned_of() -> None:
    assert not suvbw_factors(NONE).warnings
    assert "lists DECY, but DecayCorrection" in suvbw_factors(replace(NONE, corrected_image=("DECY",))).warnings[0]


@pytest.mark.parametrize("days", [-2, 1, -60, 24_000, -24_000])
def test_of_a_date_that_anonymisation_moved_the_time_of_day_counts(days: int) -> None:
    """IBSI SUV manual, DRO 4_4: the times are right, the dates are decades apart."""
    moved = replace(START, injection_datetime=INJECTION + timedelta(days=days), injection_time=None)
    factors = suvbw_factors(moved)
    assert factors.per_frame == pytest.approx(suvbw_factors(START).per_frame)
    assert "another date than the scan" in factors.warnings[0]
    midnight = replace(moved, injection_datetime=INJECTION.replace(hour=23, minute=30) + timedelta(days=days))
    scan = SCAN.replace(hour=0, minute=30, second=0, microsecond=0)
    at_night = replace(midnight, series_start=scan, frames=(replace(FRAME, acquisition=scan),))
    assert suvbw_factors(at_night).per_frame[0] == pytest.approx(1000 * 70 / (350e6 * 2 ** (-3600 / HALF_LIFE_S)))


def test_a_date_that_the_user_gives_is_never_taken_for_a_moved_one() -> None:
    with pytest.raises(InputError, match="--injection-time has another date"):
        suvbw_factors(START, SuvOverrides(injection=INJECTION - timedelta(days=366)))


def test_a_delay_that_nobody_scans_after_is_warned_of() -> None:
    for delay_s, unusual in ((60.0, True), (900.0, False), (4 * 3600.0 - 1, False), (5 * 3600.0, True)):
        warnings = suvbw_factors(replace(EARLY, injection_datetime=SCAN - seconds(delay_s))).warnings
        assert any("which is unusual" in warning for warning in warnings) is unusual
    days_before = replace(ZIRCONIUM, injection_datetime=SCAN - seconds(6 * 86_400))
    assert not suvbw_factors(days_before).warnings


def test_midnight_may_be_the_time_of_an_injection() -> None:
    at_one = MIDNIGHT + seconds(3600)
    frames = (replace(FRAME, acquisition=at_one),)
    scanned = replace(AT_MIDNIGHT, injection_time=time(0), series_start=at_one, frames=frames)
    assert factor_of(scanned) == pytest.approx(1000 * 70 / (350e6 * 2 ** (-3600 / HALF_LIFE_S)))


def test_of_a_nuclide_of_long_life_no_moved_date_is_believed() -> None:
    """IBSI SUV manual, DRO_error 4_2."""
    with pytest.raises(InputError, match="anonymisation shifts dates apart"):
        suvbw_factors(replace(ZIRCONIUM, injection_datetime=INJECTION - timedelta(days=9000)))


def test_a_series_time_less_than_a_minute_before_the_scan_is_taken_where_beds_count_anew() -> None:
    beds = tuple(replace(FRAME, acquisition=SCAN + seconds(wait)) for wait in (5, 185, 365))
    factor, note = factor_and_note(replace(START, frames=beds))
    assert factor == pytest.approx(factor_of(START))
    assert "less than a minute apart" in note
    # A clock that is a little fast: the first bed began before what SeriesTime says (the scan, five seconds later).
    fast = replace(START, frames=beds, series_start=SCAN + seconds(10))
    assert factor_of(fast) == pytest.approx(1000 * 70 / (350e6 * 2 ** (-(HALF_LIFE_S + 5) / HALF_LIFE_S)))
    late = tuple(replace(frame, acquisition=frame.acquisition + seconds(90)) for frame in beds if frame.acquisition)
    with pytest.raises(InputError, match="does not lead to one scan start"):
        suvbw_factors(replace(START, frames=late))


@pytest.mark.parametrize(
    ("before_s", "start_s"),
    [(3600.0, -3600.0), (20.0, -20.0), (-5.0, 0.0), (-61.0, None), (3601.0, None), (7200.0, None)],
)
def test_without_frame_reference_time_a_series_time_is_believed_within_an_hour(
    before_s: float, start_s: float | None
) -> None:
    """QIBA takes SeriesTime before the first AcquisitionTime; but two hours of F-18 are a factor of two."""
    frames = (replace(FRAME, frame_reference_s=None),)
    attributes = replace(START, series_start=SCAN - seconds(before_s), frames=frames)
    if start_s is None:
        with pytest.raises(InputError, match="expected 0 to 60 min before it where FrameReferenceTime"):
            suvbw_factors(attributes)
    else:
        assert factor_of(attributes) == pytest.approx(
            1000 * 70 / (350e6 * 2 ** (-(HALF_LIFE_S + start_s) / HALF_LIFE_S))
        )


def test_a_slice_without_frame_reference_time_does_not_make_series_time_good() -> None:
    frames = (FRAME, replace(FRAME, frame_reference_s=None))
    with pytest.raises(InputError, match=r"FrameReferenceTime .* is absent"):
        suvbw_factors(replace(START, series_start=SCAN - seconds(1800), frames=frames))


@pytest.mark.parametrize(
    ("manufacturer", "is_ge"),
    [("GE MEDICAL SYSTEMS", True), ("GE", True), ("GEHC", True), ("GE_HEALTHCARE", True), ("GEORGIA PET", False)],
)
def test_ge_counts_to_the_start_of_a_frame(manufacturer: str, is_ge: bool) -> None:
    """Frame reference time 0 of a frame of 300 s: for others its start lies minutes behind the first acquisition."""
    attributes = replace(later_series(duration_s=300.0), manufacturer=manufacturer)
    if is_ge:
        assert factor_of(attributes) == pytest.approx(4e-4)
    else:
        with pytest.raises(InputError, match="does not lead to one scan start"):
            suvbw_factors(attributes)


@pytest.mark.parametrize(("half_life_s", "is_odd"), [(6_586_200.0, True), (75.5, False), (360_806.0, False)])
def test_a_half_life_of_no_tracer_is_warned_of(half_life_s: float, is_odd: bool) -> None:
    attributes = replace(START, radionuclide=(), half_life_s=half_life_s, injection_datetime=SCAN - seconds(200))
    warnings = suvbw_factors(replace(attributes, injection_time=None)).warnings
    assert any("no tracer for patients" in warning for warning in warnings) is is_odd


def test_a_decay_factor_beside_no_decay_correction_is_warned_of() -> None:
    for factor, is_odd in ((1.485, True), (1.0, False), (None, False)):
        warnings = suvbw_factors(replace(NONE, frames=(replace(FRAME, decay_factor=factor),))).warnings
        assert any("DecayFactor (0054,1321) is 1.485, but" in warning for warning in warnings) is is_odd


@pytest.mark.parametrize(
    ("names", "half_life_s", "nuclide"),
    [
        (("^68^Gallium", "PSMA-11"), HALF_LIFE_S, "Ga-68"),
        (("35337001",), HALF_LIFE_S, "Ga-68"),
        (("FDG", "C-168A4"), HALF_LIFE_S, "Zr-89"),
        (("Iodine-124",), 282_276.0, "I-124"),
        (("64Cu",), HALF_LIFE_S, "Cu-64"),
    ],
)
def test_a_half_life_of_another_nuclide_than_the_named_one_is_refused(
    names: tuple[str, ...], half_life_s: float, nuclide: str
) -> None:
    with pytest.raises(InputError, match=f"of {nuclide}, which the series names"):
        suvbw_factors(replace(START, radionuclide=names, half_life_s=half_life_s))


@pytest.mark.parametrize(
    ("names", "half_life_s"),
    [(("^68^Gallium",), 4080.0), (("FDG", "^89^Zirconium"), 282_240.0), (("PSMA-11 C",), 4062.0), ((), 1.0e4)],
)
def test_a_half_life_is_held_against_the_nuclide_before_the_tracer(names: tuple[str, ...], half_life_s: float) -> None:
    attributes = replace(START, radionuclide=names, half_life_s=half_life_s)
    assert factor_of(attributes) == pytest.approx(70e3 / (350e6 * 2 ** (-HALF_LIFE_S / half_life_s)))


def test_zirconium_may_be_injected_days_before() -> None:
    attributes = replace(ZIRCONIUM, injection_datetime=SCAN - seconds(282_276.0))  # one half-life of 78.4 h
    assert factor_of(attributes) == pytest.approx(4e-4, rel=1e-9)


def test_philips_counts_are_scaled_by_its_factors() -> None:
    assert factor_of(philips(suv=5e-4)) == 5e-4
    assert factor_of(philips(activity=2.5)) == pytest.approx(2.5 * 4e-4, rel=1e-12)
    assert factor_of(philips(suv=0.0, activity=2.5)) == pytest.approx(1e-3, rel=1e-12)
    # Both: they agree to 2 %, and the one that can be checked against weight and dose is taken.
    assert factor_of(philips(suv=1.02e-3, activity=2.5)) == pytest.approx(1e-3, rel=1e-12)


def test_philips_own_suv_stands_in_where_the_weight_was_anonymised() -> None:
    factor, note = factor_and_note(replace(philips(suv=9e-4, activity=2.5), weight_kg=None))
    assert factor == 9e-4
    assert "scanner's own factor" in note
    assert "is absent or 0, so it was not checked" in note
    assert factor_of(replace(philips(suv=9e-4, activity=2.5), weight_kg=0.0)) == 9e-4
    untimed = philips(suv=9e-4, activity=2.5)
    assert factor_of(replace(untimed, frames=(replace(untimed.frames[0], acquisition=None),))) == 9e-4
    assert factor_of(replace(philips(suv=9e-4, activity=2.5), dose=0.0)) == 9e-4
    untimed = replace(philips(suv=9e-4, activity=2.5), injection_datetime=None, injection_time=None)
    for attributes in (untimed, replace(philips(suv=9e-4, activity=2.5), half_life_s=None)):
        assert factor_of(attributes) == 9e-4
    with pytest.raises(InputError, match="PatientWeight"):  # what is there and wrong is no reason to trust the factor
        suvbw_factors(replace(philips(suv=9e-4, activity=2.5), weight_kg=7000.0))


def test_a_philips_factor_that_is_none_leaves_the_other() -> None:
    assert factor_of(philips(suv=4e-4, activity=-1.0)) == 4e-4
    lean = replace(philips(suv=3e-4, activity=2.5), suv_type="LBM")
    assert factor_of(lean) == pytest.approx(1e-3, rel=1e-12)


def test_a_philips_factor_beside_bqml_is_compared_with_it() -> None:
    """To the Bq/ml, or to the counts that they were made of: in BQML, 0.0035157 and 4.7099 stand for 7.464e-4."""
    for suv, activity, warns in (
        (4.1e-4, 2.0, False),
        (8e-4, 2.0, False),
        (8e-4, None, True),
        (3e-4, 2.0, True),
        (0.0, 2.0, False),
    ):
        factors = suvbw_factors(replace(philips(suv=suv, activity=activity), units="BQML"))
        assert factors.per_frame == pytest.approx([4e-4], rel=1e-12)
        assert any("away from those of the Units (0054,1001) BQML" in text for text in factors.warnings) is warns


def test_each_philips_slice_has_its_own_factor() -> None:
    frames = tuple(replace(FRAME, philips_suv=factor) for factor in (1e-4, 2e-4))
    assert suvbw_factors(replace(philips(), frames=frames)).per_frame == (1e-4, 2e-4)


def test_the_user_stands_in_for_the_header() -> None:
    bare = replace(START, weight_kg=None, dose=None, half_life_s=None, injection_datetime=None, injection_time=None)
    given = SuvOverrides(weight_kg=70.0, dose_mbq=350.0, half_life_s=HALF_LIFE_S, injection=INJECTION)
    factors = suvbw_factors(bare, given)
    assert factors.per_frame == pytest.approx([4e-4], rel=1e-12)
    assert "Given by the user in place of the header: PatientWeight (0010,1030) (absent)" in factors.warnings[0]
    assert factor_of(START, SuvOverrides(weight_kg=35.0)) == pytest.approx(2e-4, rel=1e-12)
    assert "PatientWeight (0010,1030) (replaced)" in suvbw_factors(START, SuvOverrides(weight_kg=35.0)).warnings[0]
    lean = factor_of(replace(LEAN, height_m=None, sex=""), SuvOverrides(height_m=1.75, sex="M"))
    assert lean == pytest.approx(factor_of(LEAN), rel=1e-12)


@pytest.mark.parametrize(
    ("attributes", "overrides", "says"),
    [
        (SuvAttributes(units="GML"), SuvOverrides(weight_kg=70.0), "--patient-weight-kg would change nothing"),
        (START, SuvOverrides(sex="M"), "--patient-sex would change nothing"),
        (ADMIN, SuvOverrides(injection=INJECTION), "--injection-time would change nothing"),
        (ADMIN, SuvOverrides(half_life_s=6586.0), "--half-life-s would change nothing"),
        (LEAN, SuvOverrides(dose_mbq=350.0), "--injected-dose-mbq would change nothing"),
        (SURFACE, SuvOverrides(sex="M"), "--patient-sex would change nothing"),
        (philips(suv=1.0), SuvOverrides(weight_kg=70.0), "--patient-weight-kg would change nothing"),
    ],
)
def test_what_the_user_says_in_vain_is_refused(attributes: SuvAttributes, overrides: SuvOverrides, says: str) -> None:
    with pytest.raises(InputError, match=says):
        suvbw_factors(attributes, overrides)


@pytest.mark.parametrize("overrides", [SuvOverrides(weight_kg=0.0), SuvOverrides(half_life_s=0)])
def test_what_the_user_says_is_checked_like_the_header(overrides: SuvOverrides) -> None:
    with pytest.raises(InputError, match="expected"):
        suvbw_factors(START, overrides)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (START, True),
        (SuvAttributes(units="GML"), True),
        (LEAN, True),
        (SURFACE, True),
        (philips(suv=1.0), True),
        (SuvAttributes(units="GML", suv_type="XYZ"), False),
        (SuvAttributes(units="CM2ML", suv_type="LBM"), False),
        (SuvAttributes(units="CNTS", frames=(FRAME,)), False),
    ],
)
def test_is_convertible(attributes: SuvAttributes, expected: bool) -> None:
    assert is_convertible(attributes) is expected


# --- where the scan started --------------------------------------------------------------------------


def test_the_private_date_time_goes_before_an_overwritten_series_time() -> None:
    attributes = replace(later_series(), private_scan_start=SCAN, manufacturer="GE MEDICAL SYSTEMS")
    factor, note = factor_and_note(attributes)
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "(0009,100D)" in note


@pytest.mark.parametrize(
    ("decay_factor", "factor"),
    [
        (None, None),  # nothing says which clock was shifted
        (1.0, None),
        (2 ** (60.0 / HALF_LIFE_S), 4e-4),  # to the average of two minutes from the first acquisition
        (2 ** (1860.0 / HALF_LIFE_S), 4e-4 * 2 ** (-1800.0 / HALF_LIFE_S)),  # and from the private start
    ],
)
def test_a_private_date_time_against_all_public_times_is_believed_where_the_decay_factor_bears_it_out(
    decay_factor: float | None, factor: float | None
) -> None:
    """Half an hour, which de-identification may have shifted the public times by: a SUV of 17 % less."""
    frames = (replace(FRAME, frame_reference_s=60.0, decay_factor=decay_factor),)
    attributes = replace(START, private_scan_start=SCAN - seconds(1800), frames=frames)
    if factor is None:
        with pytest.raises(InputError, match=r"is 30.0 min before the first AcquisitionTime .* in which they agree"):
            suvbw_factors(attributes)
        return
    assert factor_of(attributes) == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(SCAN, 60.0),  # ActualFrameDuration is absent
        Frame(SCAN, math.nan, 120.0),
        Frame(SCAN, 2e5, 120.0),
    ],
)
@pytest.mark.parametrize("before_s", [0.0, 1800.0])
def test_public_times_that_say_nothing_contradict_no_private_start(frame: Frame, before_s: float) -> None:
    attributes = replace(START, private_scan_start=SCAN - seconds(before_s), frames=(frame,))
    assert factor_of(attributes) == pytest.approx(4e-4 * 2 ** (-before_s / HALF_LIFE_S), rel=1e-12)


def test_a_decay_factor_that_two_starts_explain_is_no_evidence() -> None:
    """To the beginning of a frame of 10 min from 5 min before it, or to its average from its beginning."""
    frame = Frame(SCAN, 0.0, 600.0, decay_factor=2 ** (300.0 / HALF_LIFE_S))
    ge = replace(START, manufacturer="GE MEDICAL SYSTEMS", private_scan_start=SCAN - seconds(299.2), frames=(frame,))
    with pytest.raises(InputError, match="in which they agree"):
        suvbw_factors(ge)
    late = later_series(frame_reference_s=None, duration_s=600.0, decay_factor=2 ** (588.0 / HALF_LIFE_S))
    with pytest.raises(InputError, match="SeriesTime"):
        suvbw_factors(late)  # it was corrected to a moment 4.8 min before the frame


def test_the_decay_factors_of_all_slices_bear_out_the_first_acquisition_where_series_time_was_overwritten() -> None:
    """As CPS wrote it: FrameReferenceTime 0 in every bed, and a SeriesTime of the reconstruction."""
    for reference_s in (0.0, None):
        frames = tuple(
            Frame(SCAN + seconds(bed), reference_s, 180.0, decay_factor=2 ** ((bed + 90) / HALF_LIFE_S))
            for bed in (0.0, 200.0, 400.0)
        )
        factor, note = factor_and_note(replace(later_series(), frames=frames))
        assert factor == pytest.approx(4e-4, rel=1e-12)
        assert "which DecayFactor (0054,1321) bears out" in note
        silent = replace(later_series(), frames=(*frames[:2], replace(frames[2], decay_factor=1.0)))
        with pytest.raises(InputError, match="SeriesTime"):
            suvbw_factors(silent)


def test_beds_on_both_sides_of_midnight_need_a_date() -> None:
    undated = datetime(1900, 1, 1)
    beds = tuple(replace(FRAME, acquisition=undated + timedelta(hours=hours)) for hours in (23.9, 0.1))
    with pytest.raises(InputError, match=r"AcquisitionTime \(0008,0032\) passes midnight"):
        suvbw_factors(replace(EARLY, series_start=undated + timedelta(hours=23.9), frames=beds))


@pytest.mark.parametrize("injection", [INJECTION, datetime(1900, 1, 1, 10), datetime(2031, 5, 6, 10)])
def test_of_an_injection_of_an_undated_scan_the_clock_counts(injection: datetime) -> None:
    scan = datetime.combine(datetime(1900, 1, 1), SCAN.time())
    frames = (replace(FRAME, acquisition=scan),)
    undated = replace(EARLY, injection_datetime=injection, series_start=scan, frames=frames)
    factors = suvbw_factors(undated)
    assert factors.per_frame == pytest.approx([4e-4], rel=1e-12)
    assert "The header has no date of the scan" in factors.warnings[0]
    given = suvbw_factors(undated, SuvOverrides(injection=datetime(2024, 2, 29, 11, 19, 46, 200_000)))
    assert given.per_frame == pytest.approx([2e-4 * 2 ** (1800 / HALF_LIFE_S)], rel=1e-12)


@pytest.mark.parametrize("days", [-23, 2, 4000])
def test_a_private_date_time_of_another_day_is_not_believed(days: int) -> None:
    """De-identification shifted the public dates and forgot the private one (as in ACRIN-NSCLC-FDG-PET)."""
    attributes = replace(START, private_scan_start=SCAN + timedelta(days=days))
    assert factor_of(attributes) == pytest.approx(4e-4, rel=1e-12)


@pytest.mark.parametrize("days", [-23, 2, 4000])
def test_the_clock_of_a_private_date_time_of_another_day_stands_in_for_an_overwritten_series_time(days: int) -> None:
    """As in ACRIN-NSCLC-FDG-PET, whose SeriesTime is right."""
    factor, note = factor_and_note(replace(BEDS, private_scan_start=SCAN + timedelta(days=days)))
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "the time of day of the private scan date-time" in note


def test_an_acquisition_time_that_all_beds_share_is_the_scan_start() -> None:
    shared = replace(BEDS, frames=tuple(replace(frame, acquisition=SCAN) for frame in BEDS.frames))
    factor, note = factor_and_note(shared)
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "which all slices share" in note


def test_a_start_that_the_decay_factor_contradicts_is_warned_of() -> None:
    """As in dcm2niix's issue 983: the scanner corrected for 50 minutes more than the times say."""
    average_s = average_activity_time_s(1200.0, HALF_LIFE_S)
    factor = 2 ** ((2999.0 + average_s) / HALF_LIFE_S)
    frame = Frame(SCAN + seconds(2999), average_s, 1200.0, factor)
    late = replace(START, series_start=SCAN - seconds(60), frames=(frame,))
    (warning,) = suvbw_factors(late).warnings
    # 2999 s and the 592.6 s to the average, of which the factor may count to the frame's end, at 1200 s
    assert "is 39.9 min after the one that DecayFactor (0054,1321) says" in warning
    assert "a factor of 1.29" in warning
    unsaid = (replace(FRAME, decay_factor=0.5), replace(FRAME, decay_factor=1.0))
    assert not suvbw_factors(replace(START, frames=unsaid)).warnings


def test_a_start_that_the_frame_reference_time_contradicts_is_warned_of() -> None:
    """A late frame that was saved alone, with SeriesTime written anew: what it is corrected to is an hour before."""
    late = replace(START, frames=(Frame(SCAN, 3900.0, 600.0),))
    (warning,) = suvbw_factors(late).warnings
    # The average of 600 s is 298.4 s into them (PS3.3 C.8.9.4.1.5: ln(LT / (1 - exp(-LT))) / L), so 3601.6 s.
    assert "is 60.0 min after the one that FrameReferenceTime (0054,1300) leads to" in warning
    assert "a factor of 1.46" in warning
    (of_ge,) = suvbw_factors(replace(late, manufacturer="GE MEDICAL SYSTEMS")).warnings  # to the frame's beginning
    assert "is 65.0 min after" in of_ge


@pytest.mark.parametrize(
    "frames",
    [
        (Frame(SCAN, 59.9, 120.0),),
        (Frame(SCAN, 59.9, 120.0), Frame(SCAN + seconds(1800), 1859.9, 120.0)),
        (Frame(SCAN, 59.9, 120.0), Frame(SCAN + seconds(1800), 59.9, 120.0)),  # counted anew
        (Frame(SCAN, 59.9, 120.0), Frame(SCAN, 1859.9, 120.0)),  # beds that share the start of the scan
        (Frame(SCAN, 900.0, 120.0), Frame(SCAN, 1859.9, 120.0)),  # and those of them that were cut out
        (Frame(SCAN, 0.0, 120.0),),
        (Frame(SCAN, None, 120.0),),
        (Frame(SCAN, -3.0, 120.0),),
        (Frame(SCAN, 3900.0),),  # nothing tells where in the frame it counts to
        (Frame(SCAN, 3900.0, 600.0, 2 ** (298.4 / HALF_LIFE_S)),),  # DecayFactor bears the start out
    ],
)
def test_a_start_that_the_frame_reference_time_bears_out_or_says_nothing_of(frames: tuple[Frame, ...]) -> None:
    assert not suvbw_factors(replace(START, frames=frames)).warnings


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        # SeriesTime 55 min before the first slice: 2 ** (3300 / 6586.2) = 1.415.
        (replace(START, series_start=SCAN - seconds(3300), frames=(Frame(SCAN),)), "55.0 min before"),
        (replace(START, decay_corrected_to=SCAN - seconds(3300)), "55.0 min before"),
        (replace(START, decay_corrected_to=SCAN + seconds(3300), frames=(Frame(SCAN),)), "55.0 min after"),
    ],
    ids=["SeriesTime", "DecayCorrectionDateTime before", "DecayCorrectionDateTime after"],
)
def test_a_start_that_one_attribute_alone_says_is_warned_of(attributes: SuvAttributes, says: str) -> None:
    (warning,) = suvbw_factors(attributes).warnings
    assert f"{says} the first AcquisitionTime (0008,0032), and nothing else bears it out" in warning
    assert "by a factor of 1.42" in warning


@pytest.mark.parametrize(
    "attributes",
    [
        replace(START, series_start=SCAN - seconds(240), frames=(Frame(SCAN),)),  # 2.5 %
        replace(
            START,
            series_start=SCAN - seconds(3300),
            frames=(Frame(SCAN, duration_s=120, decay_factor=2 ** (3300 / HALF_LIFE_S)),),
        ),
        # Enhanced PET: the attribute is its own.
        replace(START, decay_corrected_to=SCAN - seconds(3300), frames=(Frame(SCAN, average=SCAN + seconds(60)),)),
    ],
    ids=["near", "DecayFactor", "Enhanced"],
)
def test_a_start_that_is_near_or_borne_out_is_not_warned_of(attributes: SuvAttributes) -> None:
    assert suvbw_factors(attributes).warnings == ()


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        # A half-life passed between injection and scan, so the factor to the injection is 2.
        (replace(ADMIN, frames=(replace(FRAME, decay_factor=1.02),)), "DecayFactor (0054,1321) says another moment"),
        (replace(ADMIN, decay_corrected_to=SCAN), "DecayCorrectionDateTime (0018,9701) says another moment"),
    ],
)
def test_a_correction_to_another_moment_than_the_injection_is_warned_of(attributes: SuvAttributes, says: str) -> None:
    (warning,) = suvbw_factors(attributes).warnings
    assert says in warning


@pytest.mark.parametrize(
    "attributes",
    [
        replace(ADMIN, frames=(replace(FRAME, decay_factor=2.0),)),
        replace(ADMIN, frames=(replace(FRAME, decay_factor=1.0),)),  # many write 1 for it
        replace(ADMIN, decay_corrected_to=INJECTION),
        replace(ADMIN, decay_corrected_to=INJECTION - timedelta(days=4000)),  # another date, as anonymisation leaves it
        replace(ADMIN, injection_datetime=None, injection_time=None, frames=(replace(FRAME, decay_factor=1.02),)),
    ],
)
def test_a_correction_to_the_injection_is_not_warned_of(attributes: SuvAttributes) -> None:
    assert suvbw_factors(attributes).warnings == ()


@pytest.mark.parametrize(
    ("patient", "says"),
    [
        ({"weight_kg": 154.0, "height_m": 1.70}, "hardly fits"),  # 70 kg in pounds
        ({"weight_kg": 7.0, "height_m": 1.75, "dose": 35e6}, "hardly fits"),
        ({"weight_kg": 175.0, "height_m": 70.0}, "hardly fits"),  # one for the other
        ({"dose": 3.5e9}, "are 50 MBq/kg, expected at most 25 of F-18"),
    ],
    ids=str,
)
def test_a_weight_or_a_dose_of_hardly_a_patient_is_warned_of(patient: dict[str, float], says: str) -> None:
    (warning,) = suvbw_factors(replace(START, **patient)).warnings
    assert says in warning


@pytest.mark.parametrize(
    "patient",
    [
        {"weight_kg": 70.0, "height_m": 1.75},
        {"weight_kg": 70.0, "height_m": 175.0},  # in cm
        {"weight_kg": 140.0, "height_m": 1.75},
        {"weight_kg": 3.5, "height_m": 0.5, "dose": 30e6},  # a newborn
        {"height_m": 0.0},
        {"height_m": math.nan},
        {"dose": 3.5e9, "half_life_s": 75.5, "radionuclide": ("Rb-82",), "injection_datetime": SCAN},
    ],
    ids=str,
)
def test_a_weight_and_a_dose_of_patients_are_not(patient: dict[str, float]) -> None:
    assert suvbw_factors(replace(START, injection_time=None, **patient)).warnings == ()


def test_a_nuclide_within_a_tracers_name_is_held_against_the_half_life() -> None:
    with pytest.raises(InputError, match=r"expected 4062\.6 s of Ga-68"):
        suvbw_factors(replace(START, radionuclide=("68Ga-PSMA-11",)))


def test_an_injection_with_a_time_zone_is_refused() -> None:
    with pytest.raises(UsageError, match="has a time zone"):
        SuvOverrides(injection=INJECTION.replace(tzinfo=UTC))


def test_a_private_start_goes_before_the_frame_reference_time() -> None:
    """Of a tracer that was injected twice, both may count from the first (QIBA's pseudocode, Siemens)."""
    late = replace(START, frames=(Frame(SCAN, 3900.0, 600.0),), private_scan_start=SCAN)
    assert not suvbw_factors(late).warnings


@pytest.mark.parametrize("counted_to_s", [0.0, 59.9, 120.0])
def test_a_decay_factor_to_any_moment_of_the_frame_bears_the_start_out(counted_to_s: float) -> None:
    beds = tuple(
        Frame(SCAN + seconds(wait), wait, 120.0, 2 ** ((wait + counted_to_s) / HALF_LIFE_S)) for wait in (0.0, 1800.0)
    )
    assert not suvbw_factors(replace(START, frames=beds)).warnings


def test_the_decay_factors_of_beds_that_share_one_acquisition_time_bear_it_out() -> None:
    """The header of ACRIN-NSCLC-FDG-PET in `../shared/data/acrin-study`."""
    told = ((0.0, 1.01587), (303.0, 1.04877), (606.0, 1.08275))
    beds = tuple(Frame(SCAN, reference, 300.0, factor) for reference, factor in told)
    assert not suvbw_factors(replace(START, frames=beds)).warnings


def test_an_injection_at_the_start_of_a_scan_may_be_seconds_late() -> None:
    for late in (
        replace(EARLY, injection_datetime=SCAN + seconds(10)),
        replace(EARLY, injection_datetime=None, injection_time=(SCAN + seconds(10)).time()),
    ):
        factors = suvbw_factors(late)
        assert factors.per_frame == pytest.approx([2e-4 * 2 ** (-10 / HALF_LIFE_S)], rel=1e-9)
        assert "which is unusual" in factors.warnings[0]


def test_a_date_time_without_its_time_takes_that_beside_it() -> None:
    assert factor_of(replace(START, injection_datetime=datetime(2024, 2, 29))) == pytest.approx(4e-4, rel=1e-12)


def test_series_time_is_compared_with_the_first_of_the_beds() -> None:
    beds = tuple(Frame(SCAN + seconds(150 * bed), 999.0, 120.0) for bed in (3, 0, 1, 2))
    assert factor_of(replace(START, frames=beds)) == pytest.approx(4e-4, rel=1e-12)


def test_an_overwritten_series_time_is_replaced_by_acquisition_minus_frame_reference() -> None:
    """The slices are of a bed that began 30 min into the scan, and FrameReferenceTime is its average activity."""
    average_s = average_activity_time_s(120.0, HALF_LIFE_S)
    attributes = later_series(
        acquisition=SCAN + seconds(1800),
        frame_reference_s=1800 + average_s,
        duration_s=120.0,  # type: ignore[arg-type]
    )
    factor, note = factor_and_note(attributes)
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
    assert factor_of(attributes) == pytest.approx(4e-4, rel=1e-12)


def test_a_series_time_before_the_scan_is_replaced_as_well() -> None:
    attributes = replace(START, series_start=SCAN - seconds(600), frames=(replace(FRAME, frame_reference_s=59.98),))
    assert factor_of(attributes) == pytest.approx(4e-4, rel=1e-4)


def test_without_frame_reference_a_series_time_before_the_scan_is_taken() -> None:
    frame = Frame(SCAN + seconds(600))
    factor, note = factor_and_note(replace(START, frames=(frame,)))
    assert factor == pytest.approx(4e-4, rel=1e-12)
    assert "before the first AcquisitionTime" in note


def test_average_activity_is_a_little_before_the_middle() -> None:
    # Bateman over one half-life: ln(ln 2 / (1 - 1/2)) / ln 2 = 0.4712 half-lives.
    assert average_activity_time_s(HALF_LIFE_S, HALF_LIFE_S) == pytest.approx(0.47123 * HALF_LIFE_S, rel=1e-4)
    assert average_activity_time_s(1e-5, HALF_LIFE_S) == pytest.approx(0.5e-5, rel=1e-6)


# --- what is refused ---------------------------------------------------------------------------------

REFUSED: list[tuple[str, SuvAttributes, str]] = [
    ("units absent", replace(START, units=""), r"Units \(0054,1001\) is absent, expected BQML, GML, CM2ML or CNTS"),
    *(
        (f"units {units}", replace(START, units=units), rf"Units \(0054,1001\) is {units}, expected BQML, GML")
        for units in ("PROPCNTS", "CPS", "PCNT")
    ),
    ("SUV type BSA in GML", replace(LEAN, suv_type="BSA"), r"SUVType \(0054,1006\) is BSA, expected BW, LBM"),
    ("SUV type unknown", replace(LEAN, suv_type="XYZ"), r"SUVType \(0054,1006\) is XYZ, expected BW, LBM"),
    ("lean mass in CM2ML", replace(SURFACE, suv_type="LBM"), r"SUVType \(0054,1006\) is LBM, expected BSA"),
    ("lean mass, no weight", replace(LEAN, weight_kg=None), r"PatientWeight \(0010,1030\) is absent"),
    ("lean mass, no height", replace(LEAN, height_m=None), r"PatientSize \(0010,1020\) is absent"),
    ("lean mass, height 0", replace(LEAN, height_m=0.0), r"PatientSize \(0010,1020\) is 0 m, expected 0.4 to 2.6 m"),
    ("lean mass, height in cm", replace(LEAN, height_m=175.0), r"PatientSize \(0010,1020\) is 175 m"),
    ("lean mass, no sex", replace(LEAN, sex=""), r"PatientSex \(0010,0040\) is absent, expected M, F or O"),
    ("lean mass, odd sex", replace(LEAN, sex="X"), r"PatientSex \(0010,0040\) is X, expected M, F or O"),
    ("no lean mass", replace(LEAN, suv_type="LBM", weight_kg=300.0, height_m=1.5), r"LBM is of -150 kg for 300 kg"),
    ("surface, no height", replace(SURFACE, height_m=None), r"PatientSize \(0010,1020\) is absent"),
    ("counts without factors", replace(START, units="CNTS"), r"\(7053,1000\) nor .* \(7053,1009\) is above 0 in every"),
    ("factors of 0", philips(suv=0.0, activity=0.0), r"\(7053,1000\) nor .* \(7053,1009\) is above 0 in every"),
    ("a factor below 0", philips(suv=-1.0), r"is above 0 in every slice"),
    ("a factor for some slices", replace(philips(suv=1.0), frames=(Frame(philips_suv=1.0), FRAME)), r"in every slice"),
    ("a factor to lean SUV", replace(philips(suv=3e-4), suv_type="LBM"), r"SUVType \(0054,1006\) is LBM"),
    ("midnight, long before", replace(EARLY, injection_datetime=None, injection_time=time(0)), r"1072\) is midnight"),
    ("midnight, as the scan", replace(AT_MIDNIGHT, injection_time=time(0)), r"1072\) is midnight, 0.00 h before"),
    ("moved date, placeholder", replace(EARLY, injection_datetime=datetime(1900, 1, 1)), r"1078\) is midnight"),
    ("factors that disagree", philips(suv=5e-4, activity=1.0), r"lead to SUVs 20 % apart"),
    ("counts, no weight", replace(philips(activity=1.0), weight_kg=None), r"PatientWeight \(0010,1030\) is absent"),
    ("odd decay correction", replace(START, decay_correction="END"), r"DecayCorrection \(0054,1102\) is END, expected"),
    ("uncorrected, no duration", replace(NONE, frames=(Frame(SCAN),)), r"ActualFrameDuration \(0018,1242\) is absent"),
    ("uncorrected, no half-life", replace(NONE, half_life_s=None), r"RadionuclideHalfLife \(0018,1075\) is absent"),
    (
        "uncorrected, no times",
        replace(NONE, frames=(Frame(duration_s=120.0),)),
        r"AcquisitionTime \(0008,0032\) is absent",
    ),
    ("decay correction absent", replace(START, decay_correction=""), r"DecayCorrection \(0054,1102\) is absent"),
    ("decay denied", replace(START, corrected_image=("ATTN",)), r"CorrectedImage \(0028,0051\) does not list DECY"),
    (
        "weight absent",
        replace(START, weight_kg=None),
        r"^PatientWeight \(0010,1030\) is absent, so SUV cannot be computed\. "
        r"Pass a series that carries it, or --patient-weight-kg\.$",
    ),
    ("weight 0", replace(START, weight_kg=0.0), r"PatientWeight \(0010,1030\) is 0 kg, expected 1 to 400 kg"),
    ("weight in g", replace(START, weight_kg=70e3), r"PatientWeight \(0010,1030\) is 70000 kg"),
    ("weight NaN", replace(START, weight_kg=math.nan), r"PatientWeight \(0010,1030\) is not one finite number"),
    ("weight absent, ADMIN", replace(ADMIN, weight_kg=None), r"PatientWeight \(0010,1030\) is absent"),
    ("dose absent", replace(START, dose=None), r"RadionuclideTotalDose \(0018,1074\) is absent"),
    ("dose 0", replace(START, dose=0.0), r"RadionuclideTotalDose \(0018,1074\) is 0, expected"),
    ("dose negative", replace(START, dose=-3.5e8), r"RadionuclideTotalDose \(0018,1074\) is -3.5e\+08, expected"),
    ("dose in mCi", replace(START, dose=10.0), r"RadionuclideTotalDose \(0018,1074\) is 10, .* MBq, mCi"),
    ("dose in µCi", replace(START, dose=9500.0), r"RadionuclideTotalDose \(0018,1074\) is 9500, .* µCi"),
    (
        "Philips, and dates shifted apart",
        replace(ADRIFT, units="CNTS", frames=philips(suv=1e-3, activity=2.5).frames),
        r"is 37.83 h before the scan",
    ),
    (
        "counts, not corrected",
        replace(philips(suv=5e-4), decay_correction="NONE"),
        r"is NONE, and priv",
    ),
    ("weight 0, option", replace(START, weight_kg=0.0), r"Pass a series with the weight in kg, or --patient-weight-kg"),
    ("dose in mCi, option", replace(START, dose=10.0), r"Pass a series with the dose in Bq, or --injected-dose-mbq"),
    ("half-life 0, option", replace(START, half_life_s=0.0), r"with the half-life in s, or --half-life-s"),
    ("private clock, hours before", replace(BEDS, private_scan_start=SCAN - timedelta(days=3, hours=2)), r"spread 600"),
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
        r"\(0018,1078\) is -0.10 h before the scan start, from SeriesTime",
    ),
    (
        "injection days before",
        ADRIFT,
        r"\(0018,1078\) is 37.83 h before the scan start, from .*, expected 0 to 10.98 h: anonymisation shifts",
    ),
    (
        "clock 12 h off",
        replace(START, injection_datetime=None, injection_time=time(22, 0)),
        r"\(0018,1072\) is 13.83 h before the scan",
    ),
    (
        "dates of zirconium shifted apart",
        replace(ZIRCONIUM, injection_datetime=INJECTION - timedelta(days=20)),
        r"is 481.83 h before the scan start, from .*, expected 0 to 313.64 h: anonymisation",
    ),
    (
        "day of injection unknown",
        replace(ZIRCONIUM, injection_datetime=None, injection_time=INJECTION.time()),
        r"half-life of 78 h",
    ),
    ("no slices", replace(START, frames=()), r"AcquisitionTime \(0008,0032\) is absent"),
    (
        "acquisition absent",
        replace(START, frames=(FRAME, Frame())),
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
            later_series(), frames=(replace(FRAME, frame_reference_s=300.0), replace(FRAME, frame_reference_s=900.0))
        ),
        r"does not lead to one scan start \(spread 600 s",
    ),
]


@pytest.mark.parametrize(("attributes", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(attributes: SuvAttributes, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        suvbw_factors(attributes)
    message = str(refused.value)
    assert "\n" not in message
    assert "Pass a series" in message
    assert "2024" not in message  # a date belongs to a patient


@pytest.mark.parametrize("name", ["18F", "F-18", "^18^Fluorine", "Fluorine-18", "Fluorodeoxyglucose F^18^", "77004003"])
def test_every_name_of_f18_is_known(name: str) -> None:
    with pytest.raises(InputError, match="F-18"):
        suvbw_factors(replace(START, half_life_s=109.77, radionuclide=(name,)))


@pytest.mark.parametrize("dose_mbq", [-1.0, 0.0095, 350e6])
def test_a_dose_that_is_not_in_mbq_is_refused_and_never_guessed(dose_mbq: float) -> None:
    with pytest.raises(UsageError, match=r"--injected-dose-mbq is .* MBq"):
        SuvOverrides(dose_mbq=dose_mbq)


def test_slices_that_differ_in_a_series_attribute_are_refused() -> None:
    with pytest.raises(InputError, match=r"PatientWeight \(0010,1030\) has 2 different values"):
        merge_attributes([START, replace(START, weight_kg=71.0)])


def test_frames_are_collected_slice_by_slice() -> None:
    other = Frame(SCAN + seconds(150))
    merged = merge_attributes([START, replace(START, frames=(other,)), START])
    assert merged == replace(START, frames=(FRAME, other, FRAME))


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
    assert factor_of(attributes) == pytest.approx(expected, rel=1e-9)


@given(delay_s=st.floats(0.0, 4 * HALF_LIFE_S))
def test_a_half_life_more_doubles_the_factor(delay_s: float) -> None:
    one = replace(START, injection_datetime=SCAN - seconds(delay_s), injection_time=None)
    two = replace(one, injection_datetime=SCAN - seconds(delay_s + HALF_LIFE_S))
    assert factor_of(two) == pytest.approx(2 * factor_of(one), rel=1e-9)


@given(weight_kg=st.floats(1.0, 200.0), dose=st.floats(1e6, 5e9))
def test_twice_the_weight_with_twice_the_dose_is_the_same(weight_kg: float, dose: float) -> None:
    one = replace(ADMIN, weight_kg=weight_kg, dose=dose)
    two = replace(ADMIN, weight_kg=2 * weight_kg, dose=2 * dose)
    assert factor_of(two) == pytest.approx(factor_of(one), rel=1e-12)


@given(minutes=st.integers(1, 600), clock=st.times())
def test_time_alone_equals_date_and_time(minutes: int, clock: time) -> None:
    """Whatever the hour, also over midnight."""
    scan = datetime.combine(datetime(2024, 2, 29), clock)
    moment = scan - timedelta(minutes=minutes)
    both = replace(START, injection_datetime=moment, injection_time=None, series_start=scan, frames=(Frame(scan),))
    only_time = replace(both, injection_datetime=None, injection_time=moment.time())
    assert factor_of(only_time) == factor_of(both)


@given(duration_s=st.floats(1.0, 7200.0), half_life_s=st.floats(60.0, 1e6))
def test_average_activity_lies_between_the_start_and_the_middle(duration_s: float, half_life_s: float) -> None:
    average_s = average_activity_time_s(duration_s, half_life_s)
    assert 0 < average_s <= duration_s / 2 * (1 + 1e-9)
    # Its definition: the activity at that moment is the mean over the frame.
    rate = math.log(2) / half_life_s
    mean = -math.expm1(-rate * duration_s) / (rate * duration_s)
    assert math.exp(-rate * average_s) == pytest.approx(mean, rel=1e-9)
