"""Numbers as a person reads them; no line ends between a number and its unit. Knows no unit but seconds."""

GAP = "\u00a0"


def percent(share: float | None, digits: int) -> str:
    """A share with so many decimals; nothing for None."""
    return "" if share is None else f"{100 * share:.{digits}f}{GAP}%"


def quantity(value: float) -> str:
    """Three digits, with M or G for what has many more."""
    for factor, unit in ((1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g}{GAP}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """A time, short; nothing for None."""
    if seconds is None:
        return ""
    return f"{seconds:.3g}{GAP}s" if seconds >= 1 else f"{1e3 * seconds:.3g}{GAP}ms"


def times(ratio: float) -> str:
    """A ratio of costs."""
    return f"{ratio:,.0f}{GAP}x" if ratio >= 100 else f"{ratio:.3g}{GAP}x"


def price(value: float) -> str:
    """A price; from 1 it exceeds every gain, so it does not matter by how much."""
    return "1 or more" if value >= 1 else f"{value:.2g}"
