"""When a PET scan started and how long before it the tracer was injected. Pure.

An Enhanced PET says what its voxels are corrected to. In other files the start of the scan is not written in one
place. The order here is that of the IBSI SUV manual
(oncoray.github.io/suv_computation, version 3), and of QIBA's pseudocode where the manual has no answer:

1. The vendor's private scan date-time, GE (0009,100D) or Siemens (0071,1022), which post-processing
   leaves alone. It counts only within the day before the first AcquisitionTime: de-identification
   tools shift the public dates and forget the private ones. Where they shift the times of day as well, SeriesTime and
   FrameReferenceTime lead to one other start: then DecayFactor decides, or nobody.
2. SeriesTime, if it is the first AcquisitionTime of the slices (whole body: that of the first bed).
3. The time of day of a private date-time whose date was forgotten, within the hour before the first AcquisitionTime.
4. Otherwise SeriesTime is suspect: post-processing writes it anew, and some scanners write it before the
   scan. FrameReferenceTime is the distance from the scan start to a frame, so it leads back:
   AcquisitionTime - FrameReferenceTime for GE, which counts to the start of the frame;
   AcquisitionTime + t - FrameReferenceTime for others, which count to the moment t of the frame
   when its activity is average (PS3.3 C.8.9.4.1.5).
   Where all slices of several beds have one AcquisitionTime, it is itself the scan start.
5. Without FrameReferenceTime, or where it is counted anew for each bed: SeriesTime, if it is not later than the first
   AcquisitionTime (QIBA), in the first case by at most an hour earlier and in the second by a minute. QIBA would take
   the first AcquisitionTime if SeriesTime is later; the manual refuses, and so does PETSeg beyond a minute, unless
   the DecayFactor of every slice bears it out.

`unlike_decay_factors_s` holds what was found against DecayFactor, by which the scanner says that it scaled the slices,
and `unlike_frame_reference_s` against FrameReferenceTime.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, time, timedelta

from petseg_runtime.errors import InputError
from petseg_runtime.io.suv_attributes import (
    ACQUISITION_TIME,
    DECAY_CORRECTED_TO,
    DECAY_FACTOR,
    FRAME_DURATION,
    FRAME_REFERENCE_TIME,
    INJECTION_DATETIME,
    INJECTION_TIME,
    PRIVATE_SCAN_START,
    SERIES_TIME,
    Frame,
    SuvAttributes,
    is_undated,
    refusal,
    required,
)

# Nothing is imaged later than this. A clock that is 12 h off is caught: 12 h are 6.6 half-lives of F-18.
MAX_DELAY_HALF_LIVES = 6.0
# From here on injection and scan may be days apart, so a clock time alone does not say when it was
# (IBSI SUV manual). Zr-89 antibodies are imaged up to ten days later, which are three half-lives.
LONG_HALF_LIFE_S = 41_400.0
MAX_DELAY_LONG_HALF_LIVES = 4.0

# FDG is imaged after an hour, late scans after three; what is further off is mostly a clock that is wrong.
USUAL_DELAY_S = (600.0, 4 * 3600.0)
# Nuclides of less are imaged from the injection on.
SHORT_HALF_LIFE_S = 3600.0


# Two clocks that agree to a minute agree: F-18 decays by 0.6 % in that time.
CLOCK_TOLERANCE_S = 60.0
# SeriesTime and AcquisitionTime of one event differ by the rounding of a second.
SAME_EVENT_S = 1.0
# The longest that a scan may have begun before its first slice, where nothing but one clock says so.
BEFORE_FIRST_SLICE_S = 3600.0
# DecayFactor counts to some moment of the frame, and rounds; what differs by more contradicts the times.
DECAY_FACTOR_TOLERANCE = 0.03
# Where it is the evidence and not a check, it has to be what the scanner computes from the same times.
EVIDENCE_TOLERANCE = 0.005

_DAY_S = 86_400.0
# Moments of one scan that are further apart have a date that anonymisation moved.
OTHER_DAY_S = _DAY_S / 2
_BORNE_OUT = f"the first {ACQUISITION_TIME}, which {DECAY_FACTOR} bears out"
_GE = re.compile(r"GE(?![A-Z])|GEMS|GEHC|GENERAL ELECTRIC")


def scan_start(attributes: SuvAttributes, half_life_s: float) -> tuple[datetime, str]:
    """Moment to which voxels with DecayCorrection START are corrected, and the attributes that say so.

    Raises
    ------
    InputError : if the attributes that tell are absent or contradict each other.
    """
    if attributes.decay_corrected_to is not None:
        return attributes.decay_corrected_to, DECAY_CORRECTED_TO
    acquisitions = [acquisition_of(frame) for frame in attributes.frames or (Frame(),)]
    first = min(acquisitions)
    if is_undated(first) and _seconds(first, max(acquisitions)) > _DAY_S / 2:
        raise refusal(f"{ACQUISITION_TIME} passes midnight, and no date says on which side", "that carries dates")
    written = _written_start(attributes, first, half_life_s)
    if written is not None:
        return written
    if attributes.series_start is not None and all(frame.frame_reference_s is None for frame in attributes.frames):
        return _start_from_series(attributes, attributes.series_start, first, half_life_s)
    return _start_from_frames(attributes, acquisitions, half_life_s)


def _written_start(attributes: SuvAttributes, first: datetime, half_life_s: float) -> tuple[datetime, str] | None:
    """The start that an attribute holds which the first AcquisitionTime bears out; None if there is none."""
    series, private = attributes.series_start, attributes.private_scan_start
    if private is not None and -CLOCK_TOLERANCE_S <= _seconds(private, first) <= _DAY_S:
        return _private_or_first(attributes, private, first, half_life_s)
    if series is not None and abs(_seconds(series, first)) <= SAME_EVENT_S:
        return series, f"{SERIES_TIME}, equal to the first {ACQUISITION_TIME}"
    if private is not None:
        redated = _last_at(private.time(), first)
        if _seconds(redated, first) <= BEFORE_FIRST_SLICE_S:
            return redated, f"the time of day of the {PRIVATE_SCAN_START}, whose date is another than the scan's"
    return None


def _start_from_series(
    attributes: SuvAttributes, series: datetime, first: datetime, half_life_s: float
) -> tuple[datetime, str]:
    """The start where SeriesTime, which is not the first AcquisitionTime, and DecayFactor are all that tells.

    Raises
    ------
    InputError : if SeriesTime is too far from the first AcquisitionTime, and DecayFactor does not bear that one out.
    """
    apart_s = _seconds(series, first)
    if 0 <= apart_s <= BEFORE_FIRST_SLICE_S:
        return series, f"{SERIES_TIME}, before the first {ACQUISITION_TIME}"
    if 0 <= -apart_s <= CLOCK_TOLERANCE_S:
        return first, f"the first {ACQUISITION_TIME}, less than a minute before {SERIES_TIME}"
    if _decay_factors_bear_out(attributes, first, half_life_s):
        return first, _BORNE_OUT
    apart = f"{apart_s / 60:.1f} min before" if abs(apart_s) < _DAY_S else "of another day than"
    raise refusal(
        f"{SERIES_TIME} is {apart} the first {ACQUISITION_TIME}, expected 0 to {BEFORE_FIRST_SLICE_S / 60:.0f} min "
        f"before it where {FRAME_REFERENCE_TIME} is absent",
        "that carries it",
    )


def _private_or_first(
    attributes: SuvAttributes, private: datetime, first: datetime, half_life_s: float
) -> tuple[datetime, str]:
    """The private scan start, unless all public times lead to the first AcquisitionTime instead.

    Raises
    ------
    InputError : if they do, the two mean other SUVs, and DecayFactor does not say which it is.
    """
    is_near = abs(2 ** (_seconds(private, first) / half_life_s) - 1) <= DECAY_FACTOR_TOLERANCE
    if is_near or not _public_times_lead_to(attributes, first, half_life_s):
        return private, PRIVATE_SCAN_START
    of_first, of_private = (_decay_factors_bear_out(attributes, start, half_life_s) for start in (first, private))
    if of_first != of_private:
        return (first, _BORNE_OUT) if of_first else (private, PRIVATE_SCAN_START)
    raise refusal(
        f"The {PRIVATE_SCAN_START}, is {_seconds(private, first) / 60:.1f} min before the first {ACQUISITION_TIME}, to "
        f"which {SERIES_TIME} and {FRAME_REFERENCE_TIME} lead",
        "in which they agree",
    )


def _public_times_lead_to(attributes: SuvAttributes, first: datetime, half_life_s: float) -> bool:
    """Whether SeriesTime, and the FrameReferenceTime of every slice, say that the scan started at `first`."""
    series, frames = attributes.series_start, attributes.frames
    if series is None:
        return False
    try:
        starts = [series, *(_start_from_frame(frame, attributes.manufacturer, half_life_s) for frame in frames)]
    except InputError:  # what is absent or malformed contradicts nothing
        return False
    return all(abs(_seconds(start, first)) <= CLOCK_TOLERANCE_S for start in starts)


def _decay_factors_bear_out(attributes: SuvAttributes, start: datetime, half_life_s: float) -> bool:
    """Whether the DecayFactor of every slice, which is not 1 in all, says that it was corrected from `start`.

    To the beginning of its frame, or to its average, and all slices to the same; a whole bed position lies between.
    """
    factors = [frame.decay_factor or 0.0 for frame in attributes.frames]
    if min(factors, default=0.0) < 1.0 or max(factors) <= 1.0:
        return False
    to_beginning, to_average = [], []
    for frame, factor in zip(attributes.frames, factors, strict=True):
        off_s = _seconds(start, acquisition_of(frame)) - half_life_s * math.log2(factor)
        duration_s = frame.duration_s or 0.0  # without a sound one only the beginning can be told
        into_frame_s = average_activity_time_s(duration_s, half_life_s) if 0 < duration_s <= _DAY_S else _DAY_S
        to_beginning.append(abs(off_s))
        to_average.append(abs(off_s + into_frame_s))
    return min(max(to_beginning), max(to_average)) <= half_life_s * math.log2(1 + EVIDENCE_TOLERANCE)


def _start_from_frames(
    attributes: SuvAttributes, acquisitions: list[datetime], half_life_s: float
) -> tuple[datetime, str]:
    """The start to which FrameReferenceTime leads back, or what it bears out.

    Raises
    ------
    InputError : if it leads to several, or behind the first acquisition.
    """
    first, series = min(acquisitions), attributes.series_start
    starts = [_start_from_frame(frame, attributes.manufacturer, half_life_s) for frame in attributes.frames]
    spread_s, late_s = _seconds(min(starts), max(starts)), _seconds(first, max(starts))
    if max(spread_s, late_s) <= CLOCK_TOLERANCE_S:
        return min(starts), f"{ACQUISITION_TIME} and {FRAME_REFERENCE_TIME}"
    if first == max(acquisitions) and abs(late_s) <= CLOCK_TOLERANCE_S:
        return first, f"{ACQUISITION_TIME}, which all slices share while their {FRAME_REFERENCE_TIME} differs"
    if series is not None and abs(_seconds(series, first)) <= CLOCK_TOLERANCE_S:
        return min(series, first), f"{SERIES_TIME} and the first {ACQUISITION_TIME}, less than a minute apart"
    if _decay_factors_bear_out(attributes, first, half_life_s):
        return first, _BORNE_OUT
    raise refusal(
        f"{SERIES_TIME} is not the first {ACQUISITION_TIME}, and {FRAME_REFERENCE_TIME} does not lead to one scan "
        f"start (spread {spread_s:.0f} s, up to {late_s:.0f} s after the first acquisition)",
        "as the scanner reconstructed it",
    )


def injection_delay_s(
    attributes: SuvAttributes, start: datetime, half_life_s: float, to: str = "the scan"
) -> tuple[float, bool]:
    """Seconds from the injection to `start`, which refusals call `to`, and whether the time of day alone says so.

    An injection clock after the scan's is of the day before. Of a date on which nobody can have injected for the scan,
    as anonymisation leaves it, the time of day counts, for nuclides that nobody images on another day (IBSI SUV manual,
    DRO 4_4), if the scan is then as long after it as is usual. So it does where nothing dates the scan. A scan that is
    timed from the injection may begin within a minute before it.

    Raises
    ------
    InputError : if the time of injection is absent or given twice and differently, if it is midnight and the delay not
        usual, or if the delay is negative, or longer than `MAX_DELAY_HALF_LIVES` (`MAX_DELAY_LONG_HALF_LIVES` for
        nuclides of long half-life).
    """
    moment, clock = attributes.injection_datetime, attributes.injection_time
    if moment is not None:
        source = INJECTION_DATETIME
        if clock is not None and moment.time() == time(0):  # a date, to which the time is beside it
            source, moment = INJECTION_TIME, datetime.combine(moment.date(), clock)
        elif clock is not None:
            _check_clocks(moment, clock)
    elif clock is not None:
        source = INJECTION_TIME
        moment = _last_before(start, clock, half_life_s)
    else:
        raise refusal(
            f"{INJECTION_DATETIME} and {INJECTION_TIME} are absent, or not a date and time of the site's own clock",
            "that carries one of them, or --injection-time",
        )
    if is_undated(start) and half_life_s < LONG_HALF_LIFE_S:
        moment = _last_before(start, moment.time(), half_life_s)
    delay_s, redated = _seconds(moment, start), False
    half_lives = MAX_DELAY_HALF_LIVES if half_life_s < LONG_HALF_LIFE_S else MAX_DELAY_LONG_HALF_LIVES
    limit_s = half_lives * half_life_s
    if not -CLOCK_TOLERANCE_S <= delay_s <= limit_s and half_life_s < LONG_HALF_LIFE_S:
        same_day_s = _seconds(_last_before(start, moment.time(), half_life_s), start)
        if is_usual_delay(same_day_s, half_life_s):
            delay_s, redated = same_day_s, True
    if moment.time() == time(0) and not is_usual_delay(delay_s, half_life_s):
        raise refusal(
            f"{source} is midnight, {delay_s / 3600:.2f} h before {to}: it stands for a time that nobody wrote, or "
            "that anonymisation removed",
            "that carries the time, or --injection-time",
        )
    if not -CLOCK_TOLERANCE_S <= delay_s <= limit_s:
        shifted = ": anonymisation shifts dates apart" if abs(delay_s) >= _DAY_S else ""
        raise refusal(
            f"{source} is {delay_s / 3600:.2f} h before {to}, expected 0 to {limit_s / 3600:.2f} h{shifted}",
            "in which the times are right, or --injection-time",
        )
    return delay_s, redated


def is_usual_delay(delay_s: float, half_life_s: float) -> bool:
    """Whether tracers of this half-life are imaged so long after the injection; True where that is not known."""
    low, high = USUAL_DELAY_S
    return low <= delay_s <= high or not SHORT_HALF_LIFE_S < half_life_s < LONG_HALF_LIFE_S


def unlike_decay_factors_s(attributes: SuvAttributes, start: datetime, half_life_s: float) -> float:
    """Seconds by which `start` is earlier (later, where negative) than the one from which DecayFactor was computed.

    0 where they agree, and where there is none: many write 1 for it. Scanners differ in whether the factor counts to
    the frame's beginning or to its average, so both agree with it. Beds that share one AcquisitionTime are as far from
    it as their FrameReferenceTime says.
    """
    references = {frame.frame_reference_s or 0.0 for frame in attributes.frames}
    shared = len(references) > 1 and len({frame.acquisition for frame in attributes.frames}) == 1
    apart_s = 0.0
    for frame in attributes.frames:
        factor = frame.decay_factor
        if factor is None or factor <= 1.0 or frame.acquisition is None:
            continue
        stated_s, elapsed_s = half_life_s * math.log2(factor), _seconds(start, frame.acquisition)
        elapsed_s += (frame.frame_reference_s or 0.0) if shared else 0.0
        nearest_s = min(max(stated_s, elapsed_s), elapsed_s + (frame.duration_s or 0.0))
        if abs(nearest_s - stated_s) > abs(apart_s):
            apart_s = nearest_s - stated_s
    return apart_s if abs(2 ** (apart_s / half_life_s) - 1) > DECAY_FACTOR_TOLERANCE else 0.0


def unlike_frame_reference_s(attributes: SuvAttributes, start: datetime, half_life_s: float) -> float:
    """Seconds by which `start` is later than the one that FrameReferenceTime of the first slices leads back to.

    0 where they agree, where it is absent or leads to a later start, as where it is counted anew for each bed, and
    where a better witness says `start`: it may be tied to no event of the real world (PS3.3 C.8.9.4.1.5). Slices that
    share the start of the scan as their AcquisitionTime do not tell it by theirs.
    """
    told = [frame for frame in attributes.frames if frame.acquisition and frame.frame_reference_s is not None]
    shared = len({frame.frame_reference_s for frame in told}) > 1 == len({frame.acquisition for frame in told})
    witnesses = (attributes.decay_corrected_to, attributes.private_scan_start)
    if not told or shared or start in witnesses or _decay_factors_bear_out(attributes, start, half_life_s):
        return 0.0
    first = min(told, key=lambda frame: (frame.acquisition, frame.frame_reference_s))
    try:
        apart_s = _seconds(_start_from_frame(first, attributes.manufacturer, half_life_s), start)
    except InputError:  # what is malformed contradicts nothing
        return 0.0
    return apart_s if 2 ** (apart_s / half_life_s) - 1 > DECAY_FACTOR_TOLERANCE else 0.0


def start_alone_s(attributes: SuvAttributes, start: datetime, half_life_s: float) -> float:
    """Seconds by which `start` is before the first slice (after it, where negative), where one attribute alone says so.

    0 where that changes no SUV, and where DecayFactor or FrameReferenceTime tell more. In Enhanced PET, whose frames
    have a FrameReferenceDateTime, the moment of the correction has an attribute of its own.
    """
    frames = attributes.frames
    if any(frame.acquisition is None or frame.average or (frame.decay_factor or 0.0) > 1.0 for frame in frames):
        return 0.0
    first = min(acquisition_of(frame) for frame in frames)
    apart_s = _seconds(start, first)
    told = any(frame.frame_reference_s is not None for frame in frames)
    if abs(apart_s) > OTHER_DAY_S or abs(2 ** (apart_s / half_life_s) - 1) <= DECAY_FACTOR_TOLERANCE:
        return 0.0  # on another day the injection fits no more, which is refused
    return 0.0 if told and not _public_times_lead_to(attributes, first, half_life_s) else apart_s


def acquisition_of(frame: Frame) -> datetime:
    """When the frame began to be measured.

    Raises
    ------
    InputError : if date or time is absent.
    """
    if frame.acquisition is None:
        raise refusal(f"AcquisitionDate (0008,0022) or {ACQUISITION_TIME} is absent or malformed", "that carries both")
    return frame.acquisition


def average_activity_time_s(duration_s: float, half_life_s: float) -> float:
    """Time from the start of a frame to the moment when its activity is the frame's average, in s.

    With L = ln 2 / half-life and T the duration: ln(L T / (1 - exp(-L T))) / L, a little less than T / 2.

    Raises
    ------
    InputError : if the duration is not between 0 and a day.

    References
    ----------
    PS3.3 C.8.9.4.1.5, Frame Reference Time.
    """
    if not 0.0 < duration_s <= _DAY_S:
        raise refusal(f"{FRAME_DURATION} is {duration_s:g} s, expected 0 s to a day", "with the right duration")
    decay_per_s = math.log(2.0) / half_life_s
    decay = decay_per_s * duration_s
    # As the decay vanishes the quotient loses its digits; its logarithm tends to decay / 2.
    return duration_s / 2 if decay < 1e-6 else math.log(decay / -math.expm1(-decay)) / decay_per_s


def _start_from_frame(frame: Frame, manufacturer: str, half_life_s: float) -> datetime:
    reference_s = required(frame.frame_reference_s, FRAME_REFERENCE_TIME)
    if not 0.0 <= reference_s <= _DAY_S:
        raise refusal(f"{FRAME_REFERENCE_TIME} is {reference_s:g} s, expected 0 s to a day", "with the right time")
    into_frame_s = 0.0
    if not _GE.match(manufacturer):
        into_frame_s = average_activity_time_s(required(frame.duration_s, FRAME_DURATION), half_life_s)
    return acquisition_of(frame) + timedelta(seconds=into_frame_s - reference_s)


def _last_before(start: datetime, clock: time, half_life_s: float) -> datetime:
    if half_life_s >= LONG_HALF_LIFE_S:
        raise refusal(
            f"{INJECTION_DATETIME} is absent, and with a half-life of {half_life_s / 3600:.0f} h the tracer may have "
            "been injected on any day",
            "that carries it",
        )
    return _last_at(clock, start)


def _last_at(clock: time, moment: datetime) -> datetime:
    """When it was last `clock` before `moment`, or will be within a minute."""
    found = datetime.combine(moment.date(), clock)
    return found - timedelta(days=1) if _seconds(found, moment) < -CLOCK_TOLERANCE_S else found


def _check_clocks(moment: datetime, clock: time) -> None:
    apart_s = abs(_seconds(moment, datetime.combine(moment.date(), clock)))
    apart_s = min(apart_s, _DAY_S - apart_s)
    if apart_s > CLOCK_TOLERANCE_S:
        raise refusal(
            f"{INJECTION_DATETIME} and {INJECTION_TIME} are {apart_s / 60:.1f} min apart", "in which they agree"
        )


def _seconds(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds()
