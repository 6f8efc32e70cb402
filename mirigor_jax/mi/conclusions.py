"""Sentences on the estimate of a run: the conclusions that it allows and those that it does not, and remedies."""

from collections.abc import Mapping

from mirigor_jax.mi.certify import CERTIFICATES, Certified
from mirigor_jax.mi.results import Curve, Estimate, claim, shown_ends


def conclusions(
    estimate: Estimate,
    *,
    certificates: Mapping[str, Certified],
    shared_exactly: bool,
    tolerance_bits: float,
    curve: Mapping[str, Curve],
    max_info_nce_bits: float,
) -> list[str]:
    """One sentence for each conclusion that an estimate allows or does not, and for each way to improve it.

    certificates: every certificate's result on the test part, by name. The estimate names the chosen one.
    shared_exactly: whether both views always have the same class C. upper_bits is then H(C); otherwise it is I(C;C').
    tolerance_bits: bits. The gap to H(C) up to which Theorem III.1 counts as met.
    curve: each estimator's readings of the same critic; InfoNCE's come first.
    max_info_nce_bits: the most InfoNCE that a critic reaches at the quoted K, in expectation, or an upper bound of it.
    Source: Lee et al. 2023, Theorems III.1 and III.2.
    """
    upper_bits, certificate, confidence = estimate.upper_bits, estimate.certificate, estimate.confidence
    sentences = _claims(estimate, certificates)
    gap_bits = None if upper_bits is None or not shared_exactly else upper_bits - (estimate.lower_bits or 0.0)
    sentences += _theorems(upper_bits, gap_bits, tolerance_bits, confidence, certificates)
    info_nce, *others = curve.values()
    if certificate is not None:
        sentences += [_value(estimate, certificate)]
    sentences += [_reading(info_nce), *(_other_reading(other, upper_bits) for other in others)]
    if upper_bits == 0:
        return sentences
    sentences += [_remedy_of_the_estimate(info_nce, upper_bits, max_info_nce_bits)]
    return sentences + ([] if certificate is None else [_remedy_of_the_interval(certificate, certificates)])


def _claims(estimate: Estimate, certificates: Mapping[str, Certified]) -> list[str]:
    """The certified interval, and the images that it is about."""
    lower_bits, certificate = estimate.lower_bits, estimate.certificate
    if estimate.upper_bits == 0:
        return ["The views share nothing, so I(h_X;h_Y) = 0 for every encoder, by data processing."]
    if estimate.verdict in ("not-independent", "seen"):
        return [f"Nothing is certified: {estimate.warnings[0]}."]
    if lower_bits is None or certificate is None:
        return ["Nothing is certified: every number here is a point estimate."]
    claimed = claim(lower_bits, estimate.upper_bits, estimate.confidence)
    evidence = CERTIFICATES[certificate].evidence(certificates[certificate].counts)
    return [
        f"On fresh images I(h_X;h_Y) {claimed} ({certificate} certificate, {evidence}).",
        "Nothing is claimed about images drawn otherwise (other class frequencies, nuisances or pairings).",
    ]


def _theorems(
    upper_bits: float | None,
    gap_bits: float | None,
    tolerance_bits: float,
    confidence: float,
    certificates: Mapping[str, Certified],
) -> list[str]:
    """The conclusions from the theorems on views that share their class.

    gap_bits: H(C) minus the lower end; None if the views do not share their class, or there is no upper end.
    """
    if gap_bits is None:
        end = "I(C;C') of the pairing is still the upper end" if upper_bits is not None else "no upper end is known"
        return [
            "The views do not share their class exactly: Theorems III.1 and III.2 of Lee et al. 2023 do not apply; "
            f"{end}."
        ]
    if not upper_bits:
        return []
    met = f"the lower end is within {gap_bits:.3f} bits of it, so I(h_X;h_Y) may still be that much below H(C)"
    missed = f"the lower end is {gap_bits:.3f} bits below it, so I = H(C) does not follow"
    first = (
        f"By Theorem III.1 of Lee et al. 2023, I = H(C) if a lower bound reaches H(C) = {upper_bits:.3f} bits: "
        f"{met if gap_bits <= tolerance_bits else missed}."
    )
    values = ((CERTIFICATES[name].theorem, shown.counts) for name, shown in certificates.items())
    return [first, *(theorem(counts, confidence) for theorem, counts in values if theorem is not None)]


def _value(estimate: Estimate, certificate: str) -> str:
    """The estimate, its interval and its meaning."""
    interval = "" if estimate.interval is None else f", {shown_ends(estimate.interval)} by {estimate.interval.kind}"
    return (
        f"The estimate, {estimate.value_bits:.3f} bits{interval}, is the point estimate of a lower bound of I(h_X;h_Y) "
        f"({certificate} certificate); the certified lower end is the lower confidence limit of the same bound."
    )


def _reading(info_nce: Curve) -> str:
    """The reading of InfoNCE, and a note that its interval is no certificate."""
    quoted = info_nce.quoted
    interval = (
        "one batch has no interval"
        if quoted.interval is None
        else f"its interval, {shown_ends(quoted.interval)} by {quoted.interval.kind}, is an approximation and no part "
        "of the certificate"
    )
    return f"{info_nce.heading} reads {quoted.bits:.3f} bits at K = {info_nce.k:,}; {interval}."


def _other_reading(other: Curve, upper_bits: float | None) -> str:
    """Another estimator's reading of the same critic, and whether it may exceed I."""
    bits = other.quoted.bits
    sentence = f"The {other.heading} reads {bits:.3f} bits at K = {other.k:,}"
    if other.is_bound:
        return f"{sentence} and is a lower bound too."
    sentence += " and is not a bound: it may exceed I"
    if upper_bits is None or bits <= upper_bits:
        return f"{sentence}."
    return f"{sentence}, and here passes the upper end by {bits - upper_bits:.3f} bits."


def _remedy_of_the_estimate(info_nce: Curve, upper_bits: float | None, max_info_nce_bits: float) -> str:
    """The way to raise InfoNCE."""
    bits, k = info_nce.quoted.bits, info_nce.k
    if upper_bits is not None and bits >= upper_bits - 0.02:
        return "InfoNCE is at the upper end: neither a larger K nor longer training can add to it."
    if max_info_nce_bits - bits <= 0.02:
        return (
            f"At K = {k:,} no critic is expected to show more than {max_info_nce_bits:.3f} bits: InfoNCE is that "
            "high, and only a larger K can raise it."
        )
    return (
        f"At K = {k:,} no critic is expected to show more than {max_info_nce_bits:.3f} bits: InfoNCE is "
        f"{max_info_nce_bits - bits:.3f} below, which longer training of encoder or critic may recover."
    )


def _remedy_of_the_interval(certificate: str, certificates: Mapping[str, Certified]) -> str:
    """The way to narrow the certified interval."""
    counted = {
        name: certificate.mistakes(certificates[name].counts)
        for name, certificate in CERTIFICATES.items()
        if certificate.mistakes is not None and name in certificates
    }
    if counted.get(certificate) == 0:
        return f"The certified interval narrows with more fresh test images only: the {certificate} made no error."
    wrong = "".join(f", since the {name} made {errors:,} errors" for name, errors in counted.items() if errors)
    return (
        f"The certified interval narrows with a better encoder, longer training or a stronger probe{wrong}; more fresh "
        "test images remove only the margin for sampling error."
    )
