"""The checks themselves are checked: a good row passes, and each broken one is found.

Usage: check_grit_rows.py
Prints each failed check and, last, `N passed, N failed`.
"""
import copy
import sys

import grit_rows
from tally import Tally

CAPTION = "a dog in a field of flowers"
RELEASED = {
    "caption": CAPTION,
    "noun_chunks": [[0, 5, 0.3, 0.3, 0.6, 0.8, 0.9], [9, 16, 0.0, 0.4, 1.0, 1.0, 0.8]],
    "ref_exps": [[0, 27, 0.3, 0.3, 0.6, 0.8, 0.9], [9, 27, 0.0, 0.4, 1.0, 1.0, 0.8]],
}


def broken(column, index, place, value):
    row = copy.deepcopy(RELEASED)
    row[column][index][place] = value
    return row


def without(column, index):
    row = copy.deepcopy(RELEASED)
    del row[column][index]
    return row


def short_entry():
    row = copy.deepcopy(RELEASED)
    row["ref_exps"][0].pop()
    return row


GOOD = {
    "released form": RELEASED,
    "resolved form": without("ref_exps", 1),
    "resolved form, the later one left": without("ref_exps", 0),
    "nothing grounded": {"caption": CAPTION, "noun_chunks": [], "ref_exps": []},
}
BAD = {
    "six numbers": short_entry(),
    "span behind the caption": broken("ref_exps", 0, 1, 28),
    "span that is empty": broken("noun_chunks", 0, 1, 0),
    "span before the caption": broken("ref_exps", 0, 0, -1),
    "span between characters": broken("noun_chunks", 0, 1, 4.5),
    "span of a space": {"caption": CAPTION, "noun_chunks": [[1, 2, 0.3, 0.3, 0.6, 0.8, 0.9]], "ref_exps": []},
    "box beyond the right edge": broken("noun_chunks", 1, 4, 1.01),
    "box in pixels": broken("ref_exps", 0, 2, 30),
    "box turned over": broken("noun_chunks", 0, 2, 0.6),
    "NaN": broken("noun_chunks", 0, 3, float("nan")),
    "null": broken("noun_chunks", 0, 3, None),
    "score that is null": broken("noun_chunks", 0, 6, None),
    "score above one": broken("noun_chunks", 0, 6, 90),
    "rising scores": broken("noun_chunks", 0, 6, 0.7),
    "expression with another box": broken("ref_exps", 1, 2, 0.1),
    "expression that does not hold its chunk": broken("ref_exps", 0, 0, 2),
    "more expressions than chunks": without("noun_chunks", 1),
    "resolved expression of no chunk": {**without("ref_exps", 1), "noun_chunks": RELEASED["noun_chunks"][1:] * 2},
    "no caption": {**RELEASED, "caption": None},
    "no ref_exps": {"caption": CAPTION, "noun_chunks": []},
}


def main():
    tally = Tally()
    for name, row in GOOD.items():
        tally.check(grit_rows.complaints(row) == [], f"{name}: {grit_rows.complaints(row)}")
    for name, row in BAD.items():
        tally.check(grit_rows.complaints(row), f"{name} is not noticed")
    tally.check(grit_rows.is_released(RELEASED), "released form is seen as such")
    tally.check(not grit_rows.is_released(without("ref_exps", 1)), "resolved form is seen as such")
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
