"""Numbers in English and in German words: sentence pairs that need no download."""

ONES = (
    ("zero", "null"),
    ("one", "eins"),
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
    ("seven", "sieben"),
    ("eight", "acht"),
    ("nine", "neun"),
    ("ten", "zehn"),
    ("eleven", "elf"),
    ("twelve", "zwölf"),
    ("thirteen", "dreizehn"),
    ("fourteen", "vierzehn"),
    ("fifteen", "fünfzehn"),
    ("sixteen", "sechzehn"),
    ("seventeen", "siebzehn"),
    ("eighteen", "achtzehn"),
    ("nineteen", "neunzehn"),
)
TENS = (
    ("twenty", "zwanzig"),
    ("thirty", "dreißig"),
    ("forty", "vierzig"),
    ("fifty", "fünfzig"),
    ("sixty", "sechzig"),
    ("seventy", "siebzig"),
    ("eighty", "achtzig"),
    ("ninety", "neunzig"),
)


def english(number: int) -> str:
    """Write a number from 0 to 9999 in English words.

    Example:
        >>> english(4217), english(100), english(7001)
        ('four thousand two hundred and seventeen', 'one hundred', 'seven thousand and one')
    """
    high, low = divmod(number, 100)
    thousands, hundreds = divmod(high, 10)
    words = [f"{english(thousands)} thousand"] if thousands else []
    words += [f"{english(hundreds)} hundred"] if hundreds else []
    if low or not words:
        words += ["and", _low_english(low)] if words else [_low_english(low)]
    return " ".join(words)


def german(number: int) -> str:
    """Write a number from 0 to 9999 in German words: one long word, in which units stand before tens.

    Example:
        >>> german(4217), german(100), german(21)
        ('viertausendzweihundertsiebzehn', 'einhundert', 'einundzwanzig')
    """
    high, low = divmod(number, 100)
    thousands, hundreds = divmod(high, 10)
    words = f"{_stem(thousands)}tausend" if thousands else ""
    words += f"{_stem(hundreds)}hundert" if hundreds else ""
    return words + _low_german(low) if low or not words else words


def _low_english(number: int) -> str:
    if number < 20:
        return ONES[number][0]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2][0] + (f"-{ONES[ones][0]}" if ones else "")


def _low_german(number: int) -> str:
    if number < 20:
        return ONES[number][1]
    tens, ones = divmod(number, 10)
    return (f"{_stem(ones)}und" if ones else "") + TENS[tens - 2][1]


def _stem(digit: int) -> str:
    """Before another word "eins" loses its last letter."""
    return ONES[digit][1].removesuffix("s") if digit == 1 else ONES[digit][1]
