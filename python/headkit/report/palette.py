"""Colours that stay apart for colour-blind readers, and how numbers are mapped onto them."""

from bisect import bisect_right

# Nine stops of cividis (Nunez, Anderton, Renslow 2018): dark = little, light = much.
CIVIDIS = (
    (0.0, (0, 34, 78)),
    (0.125, (18, 53, 112)),
    (0.25, (59, 73, 108)),
    (0.375, (87, 93, 109)),
    (0.5, (112, 113, 115)),
    (0.625, (138, 134, 120)),
    (0.75, (165, 156, 116)),
    (0.875, (195, 179, 105)),
    (1.0, (254, 232, 56)),
)

# Okabe, Ito 2008.
FAMILIES = {
    "dense": "#5b6470",
    "attached": "#56b4e9",
    "random": "#999999",
    "static": "#0072b2",
    "gate": "#e69f00",
    "escalation": "#d55e00",
}


def cividis(value: float) -> str:
    """Colour of a number between 0 and 1, as ``#rrggbb``.

    Example:
        >>> cividis(0.0), cividis(1.0)
        ('#00224e', '#fee838')
    """
    value = min(1.0, max(0.0, value))
    place = min(len(CIVIDIS) - 2, bisect_right([stop for stop, _ in CIVIDIS], value) - 1)
    (low, first), (high, second) = CIVIDIS[place], CIVIDIS[place + 1]
    share = (value - low) / (high - low)
    mixed = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a ``#rrggbb`` colour (WCAG contrast).

    Example:
        >>> ink_on("#fee838"), ink_on("#00224e")
        ('#000000', '#ffffff')
    """
    linear = []
    for place in (1, 3, 5):
        part = int(colour[place : place + 2], 16) / 255
        linear.append(part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4)
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def family(name: str) -> str:
    """Colour of a row such as ``static@0.5``.

    Example:
        >>> family("static@0.5")
        '#0072b2'
    """
    return FAMILIES.get(name.split("@")[0], "#009e73")
