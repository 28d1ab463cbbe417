"""What must hold for a row in the released form of GrIT.

`noun_chunks` and `ref_exps` are lists of [start, end, x1, y1, x2, y2, score]: characters of the caption (end exclusive), a box as fractions of the
picture's width and height, the detector's score. Entries are ordered by score, highest first.
"""
import math

NUMBERS = 7


def complaints(row):
    """Everything that is wrong with the row, as sentences; an empty list if nothing is."""
    caption = row.get("caption")
    if not isinstance(caption, str):
        return [f"caption is {type(caption).__name__}, not text"]
    found = []
    for column in ("noun_chunks", "ref_exps"):
        entries = row.get(column)
        if entries is None:
            found.append(f"{column} is missing")
            continue
        wrong = [f"{column}[{index}]: {why}" for index, entry in enumerate(entries) for why in of_entry(entry, caption)]
        found += wrong
        scores = [] if wrong else [entry[-1] for entry in entries]
        if any(later > earlier for earlier, later in zip(scores, scores[1:])):
            found.append(f"{column} is not in order of falling score: {scores}")
    return found or of_pair(row["noun_chunks"], row["ref_exps"])


def of_entry(entry, caption):
    """What is wrong with one entry."""
    if len(entry) != NUMBERS:
        return [f"has {len(entry)} numbers instead of {NUMBERS}"]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in entry):
        return [f"holds something that is no number: {entry}"]
    start, end, x1, y1, x2, y2, score = entry
    found = []
    if not (start == int(start) and end == int(end) and 0 <= start < end <= len(caption)):
        found.append(f"span {start}..{end} is not inside a caption of {len(caption)} characters")
    elif not caption[int(start) : int(end)].strip():
        found.append(f"span {start}..{end} holds only spaces")
    if not all(0 <= edge <= 1 for edge in (x1, y1, x2, y2)):
        found.append(f"box {entry[2:6]} leaves the picture")
    if not (x2 > x1 and y2 > y1):
        found.append(f"box {entry[2:6]} has no area")
    if not 0 <= score <= 1:
        found.append(f"score {score} is not in 0..1")
    return found


def is_released(row):
    """Whether the two lists are 1:1, as in the released files. After a containment drop `ref_exps` is the shorter one."""
    return len(row["noun_chunks"]) == len(row["ref_exps"])


def of_pair(noun_chunks, ref_exps):
    """What is wrong between the two lists: an expression is a chunk's box under a span that holds the chunk's."""
    def answers(chunk, expression):
        return chunk[2:] == expression[2:] and expression[0] <= chunk[0] and chunk[1] <= expression[1]

    if len(noun_chunks) == len(ref_exps):
        return [
            f"entry {index}: {expression} does not hold {chunk}"
            for index, (chunk, expression) in enumerate(zip(noun_chunks, ref_exps))
            if not answers(chunk, expression)
        ]
    if len(ref_exps) > len(noun_chunks):
        return [f"{len(ref_exps)} expressions for {len(noun_chunks)} chunks"]
    rest = iter(noun_chunks)  # the shorter list is in the order of the longer one
    return [
        f"ref_exps[{index}]: {expression} holds no chunk, or not in the chunks' order"
        for index, expression in enumerate(ref_exps)
        if not any(answers(chunk, expression) for chunk in rest)
    ]
