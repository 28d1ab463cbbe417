#!/usr/bin/env python3
"""Gathers texts of many shapes for the comparison with spaCy, as JSON strings, one a line.

Prose comes from what is installed: docstrings of Python's standard library and of
site-packages, and the Markdown and doc comments of Rust crates. Captions are built from
the model's own word lists. The rest is made to be difficult.

    python scripts/gather_texts.py --model FOLDER [--seed N] [--count N] > texts.jsonl
"""
import argparse
import ast
import json
import pathlib
import random
import re
import sysconfig

import srsly

SCENES = [
    "a {adj} {noun} {ving} {prep} a {adj} {noun}", "two {nouns} and a {noun} {prep} the {noun}",
    "{Noun} {ving} {prep} the {noun}, {adj} and {adj}", "A photo of a {noun}.", "the {adj} {noun}'s {noun}",
    "a close up of some {nouns} on a {noun} with {nouns}, {nouns} and {nouns}",
    "A man in a {adj} {noun} is {ving} while his {noun} {verbs} nearby", "{num} {nouns} {prep} {num} {nouns}",
    "An {adj} {noun} that {verbs} the {noun} it {verbed}", "someone {ving} a {noun} , {noun} in background",
    "{Noun} - {Noun} ({num}x{num} cm) | {adj} {noun}", "\"{Noun} {noun}\" by {Name} {Name}, {num}",
    "stock photo: {adj} {noun} {ving} - #{num}", "{Name}'s {noun}: {adj}, {adj} & {adj}!!!",
    "There is a {noun} {prep} the {noun} and it is not {adj}.", "{nouns}, {nouns}, {nouns}",
    "What a {adj} {noun}! I can't {verb} it, don't you?", "{Name} {Name} {verbed} {Name} {prep} the {noun} of {Name}.",
    "a {noun}-{noun} {noun} ({adj})", "young {noun} wearing {adj}-{adj} {noun} and {nouns} {ving} {prep} {noun}",
    "the person to the left of the {noun} which the {noun} that {verbs} {nouns} {verbed}",
    "{adj} {noun} {noun} {noun} for sale, only ${num}.99 or {num}€", "view of {Name} {noun} from the {noun} at {noun}",
]
PREPOSITIONS = "on in under behind near beside over at by with without between into against along".split()
ODD = [
    "e.g.", "i.e.", "U.S.A.", "U.K.", "Mr.", "Dr.", "p.m.", "a.m.", "10a.m.", "Ph.D.", "vs.", "St.", "Jan.", "No.", "etc.",
    "can't", "won't", "ain't", "it's", "It’s", "y'all", "I'd've", "shouldn't've", "dont", "cant", "gonna", "gotta", "let's",
    "'em", "o'clock", "'cause", "rock'n'roll", "d'you", "ma'am", "'90s", "the '60s", "Cos", "n't", "nt", "'s", "’s", "s'",
    ":)", ":-)", ";-)", ":(", ":'(", "<3", ":D", "xD", ":-/", "^_^", "(-:", "¯\\(ツ)/¯", "(╯°□°)╯︵ ┻━┻", "ಠ_ಠ", "\\o/", ">.<", "8)",
    "http://example.com/a?b=c#d", "www.foo-bar.co.uk", "me@host.org", "ftp://1.2.3.4:80/x", "10.0.0.1", "192.168.1.1", "github.com/a/b",
    "https://en.wikipedia.org/wiki/Rust_(programming_language)", "foo.bar", "a.b.c", "file.txt", "C++", "C#", ".NET", "node.js", "F#",
    "$5", "US$5", "€9.99", "5€", "£3m", "100%", "5km", "10kg", "20°C", "5m²", "3.5GB", "1,000,000", "1/2", "½", "2²", "x²", "#1", "No.1", "12:30", "5-6", "5–6",
    "1990s", "1st", "2nd", "3D", "4x4", "+49 30 123", "-5", "+5", "~3", "≈4", "10^5", "a*b", "2*3", "5-", "=5", "a=b", "x>y", "<br/>", "&amp;", "A&B",
    "—", "–", "--", "---", "...", "....", "…", "……", "!?", "?!", "!!!", "***", "___", "'", '"', "''", "``", "“", "”", "‘", "’", "«", "»", "„", "(", ")", "[", "]", "{", "}",
    "well-known", "state-of-the-art", "mother-in-law's", "and/or", "he/she", "word—word", "word–word", "word...word", "word,word", "Word.Word", "word.Word",
    "👍", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "☺", "★★★", "→", "™", "©2020", "®", "°", "№", "é", "e\u0301", "naïve", "Zoë", "İstanbul", "ΣΑΣ", "straße", "ﬁne",
    "\u200b", "\u200d", "\ufeff", "\u00a0", "\u2009", "\u3000", "\u2028", "\u0085", "\x1c", "\t", "\n", "\r\n", "  ", "   ", " \n ", "\x00", "\x07", "\u202e",
    "IS", "THE", "US", "IT", "X", "num", "root", "ROOT", "PROPN", "SPACE", "_", "__init__", "self.x", "x_y", "CamelCase", "snake_case", "fn main() {}",
]


def doc_comments(text):
    """Paragraphs of Rust doc comments."""
    lines = re.findall(r"^\s*//[/!] ?(.*)$", text, re.M)
    return re.split(r"\n\s*\n", "\n".join(lines))


def prose_of(folder):
    """Paragraphs of a folder's Markdown and doc comments."""
    for path in sorted([*folder.rglob("*.md"), *folder.rglob("*.rs")]):
        text = path.read_text(encoding="utf8", errors="ignore")
        yield from doc_comments(text) if path.suffix == ".rs" else re.split(r"\n\s*\n", text)


def prose():
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf8"))
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                doc = ast.get_docstring(node)
                if doc:
                    yield from re.split(r"\n\s*\n", doc)
    registry = pathlib.Path.home() / ".cargo" / "registry" / "src"
    for path in sorted(registry.glob("*/*/*.md")) + sorted(registry.glob("*/*/src/lib.rs")):
        text = path.read_text(encoding="utf8", errors="ignore")
        yield from doc_comments(text) if path.suffix == ".rs" else re.split(r"\n\s*\n", text)


def sentences_of_languages():
    """The example sentences that spaCy carries for each of its languages."""
    import spacy
    for path in sorted((pathlib.Path(spacy.__file__).parent / "lang").glob("*/examples.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.strip()


class Captions:
    def __init__(self, model, rng):
        tables = srsly.msgpack_loads((model / "lemmatizer" / "lookups" / "lookups.bin").read_bytes())["lemma_index"]
        words = [[w for w in sorted(t) if w.isalpha() and w.isascii()] for t in tables.values()]
        words.sort(key=len)
        self.adverbs, self.verbs, self.adjectives, self.nouns = words
        self.rng = rng

    def pick(self, words):
        # Half of the draws prefer short words, which are the common ones.
        rng = self.rng
        return min(rng.choice(words), rng.choice(words), rng.choice(words), key=len) if rng.random() < 0.5 else rng.choice(words)

    def caption(self):
        noun, verb = lambda: self.pick(self.nouns), lambda: self.pick(self.verbs)
        fill = {
            "adj": lambda: self.pick(self.adjectives), "noun": noun, "nouns": lambda: noun() + "s",
            "Noun": lambda: noun().capitalize(), "Name": lambda: noun().title(), "verb": verb, "verbs": lambda: verb() + "s",
            "ving": lambda: verb().removesuffix("e") + "ing", "verbed": lambda: verb().removesuffix("e") + "ed",
            "prep": lambda: self.rng.choice(PREPOSITIONS), "num": lambda: str(self.rng.choice([2, 3, 7, 12, 100, 1984, 2500])),
        }
        text = re.sub(r"\{(\w+)\}", lambda m: fill[m.group(1)](), self.rng.choice(SCENES))
        return text if self.rng.random() < 0.6 else text + self.rng.choice([".", "!", " .", "...", " ", "\n"])


def mutate(text, rng):
    """Typos, case, spaces, and things put where they don't belong."""
    text = list(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(7):
            case 0: text[at:at] = rng.choice(ODD)
            case 1: text[at:at + 1] = []
            case 2: text[at:at] = rng.choice(["  ", "\t", "\n", " \n", "\u200b", "\u00a0"])
            case 3: text[at:at + 2] = text[at:at + 2][::-1]
            case 4: text[at:at + 9] = "".join(text[at:at + 9]).upper()
            case 5: text[at:at] = rng.choice("()[]{}\"'“”‘’.,;:!?-–—/\\*_#@&%$€£~^`<>|+=")
            case 6: text[at:at + 1] = [chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x370, 0x530), rng.randrange(0x2000, 0x2c00), rng.randrange(0x1f300, 0x1fb00)]))]
    return "".join(text)


def letters_of_anywhere(rng):
    """Words of random code points from one or two blocks."""
    def block():
        start = rng.choice([0x80, 0x250, 0x370, 0x400, 0x531, 0x591, 0x600, 0x900, 0xE00, 0x1100, 0x1E00, 0x3040, 0x4E00, 0xA720, 0xAC00, 0xF900, 0xFF00, 0x10400, 0x1D400, 0x1E900, 0x20000])
        return [c for c in map(chr, range(start, start + 128)) if not 0xD800 <= ord(c) < 0xE000]
    chars = block() + (block() if rng.random() < 0.3 else [])
    return " ".join("".join(rng.choices(chars, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 12)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="spaCy model folder, for its word lists")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--count", type=int, default=24_000)
    parser.add_argument("--prose", type=pathlib.Path, help="take prose from this folder's .md and .rs files instead")
    parser.add_argument("--only", choices=["prose", "captions", "sentences"],
                        help="one kind of text instead of the mixture; sentences are of a caption's length")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    captions = Captions(args.model, rng)
    pool = sorted({p.strip() for p in (prose_of(args.prose) if args.prose else prose()) if 12 <= len(p.strip()) <= 1500})
    rng.shuffle(pool)
    foreign = [s for s in sentences_of_languages() if 3 < len(s) < 500]

    def odd():
        return rng.choice(["", " "]).join(rng.choice(ODD) if rng.random() < 0.5 else rng.choice(captions.nouns) for _ in range(rng.randint(1, 14)))

    def long():
        return "\n\n".join(rng.choice(pool) for _ in range(rng.randint(5, 60)))

    def sentence():
        words = rng.choice(re.split(r"(?<=[.!?])\s+", rng.choice(pool))).split()
        return " ".join(words) if 5 <= len(words) <= 24 else sentence()

    kinds = [(40, lambda: rng.choice(pool)), (25, captions.caption), (12, odd), (12, lambda: mutate(rng.choice(pool)[:400], rng)),
             (5, lambda: mutate(captions.caption(), rng)), (3, lambda: rng.choice(foreign)), (2, lambda: letters_of_anywhere(rng)), (0.3, long)]
    if args.only:
        kinds = [(1, {"prose": kinds[0][1], "captions": captions.caption, "sentences": sentence}[args.only])]
    texts = {"", " ", "  ", "\n", " \t \n", "\u200b", "a", ".", "''"} if not args.only else set()
    out = sorted(texts)
    while len(out) < args.count:
        (_, make), = rng.choices(kinds, [w for w, _ in kinds])
        text = make().encode("utf8", "ignore").decode("utf8")
        if text not in texts:
            texts.add(text)
            out.append(text)
    for text in out:
        print(json.dumps(text, ensure_ascii=True))


if __name__ == "__main__":
    main()
