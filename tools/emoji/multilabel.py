"""Derives Emoji-Multilabel, a multi-label stream of 5 sessions × 4 labels, from Emoji-CMML: python3 multilabel.py
[--check]. Standard library only. data/emoji-multilabel/README.md says what the rules are for."""
import argparse, collections, json, pathlib, re, sys

DATA = pathlib.Path(__file__).resolve().parents[2] / "data"
SOURCE, OUT = DATA / "emoji-cmml" / "EMOJI-CMML.json", DATA / "emoji-multilabel"
SPLITS = ("train", "val", "test")
# Session → its labels, each with the other words that say the same: a word of either kind gives an emoji the label,
# and is taken out of every text.
SESSIONS = {
    "creatures": {"animal": "animals", "bird": "birds birdie firebird", "cat": "cats",
                  "face": "faces facepalm facepalming stoneface"},
    "feelings": {"eyes": "eye eyed", "heart": "hearts heartbeat heartbroken heartpulse", "love": "loves lover loving",
                 "smile": "smiles smiling smiley"},
    "eating": {"food": "foods seafood", "fruit": "fruits", "japanese": "japan", "sweet": "sweets"},
    "signs": {"arrow": "arrows", "button": "buttons", "clock": "clocks o’clock", "time": "times timer bedtime springtime"},
    "play-and-sky": {"ball": "balls baseball basketball football handball softball volleyball", "moon": "moons",
                     "space": "spaceship", "sport": "sports"},
}
LABELS = {label: forms for labels in SESSIONS.values() for label, forms in labels.items()}
NAMES = list(LABELS)
# Word → index of its label.
LABEL_OF = {word: i for i, (label, forms) in enumerate(LABELS.items()) for word in [label, *forms.split()]}
LABELS_OF_A_SESSION = 4
assert all(len(labels) == LABELS_OF_A_SESSION for labels in SESSIONS.values())
# Emoji that a label must have in each split.
LEAST = {"train": 9, "val": 1, "test": 3}
WORD = re.compile(r"[^\W_]+(?:[’'][^\W_]+)*")


def label_of(word):
    """The index of the label that a word says, a possessive s aside; None for other words."""
    return LABEL_OF.get(re.sub(r"[’']s$", "", word.lower()))


def without_labels(texts):
    """A list of texts without the words of all labels; a text without a word, or equal to an earlier one, is left out."""
    kept = []
    for text in texts:
        text = WORD.sub(lambda match: match[0] if label_of(match[0]) is None else "", text)
        text = re.sub(r"\s+([,:;.!?])", r"\1", re.sub(r"\s+", " ", text)).strip(" ,:;-–")
        if WORD.search(text) and text not in kept:
            kept.append(text)
    return kept


def labels_of_emoji(items):
    """Emoji → the set of its labels: the words of all its drawings' texts."""
    labels = collections.defaultdict(set)
    for item in items:
        labels[item["group"]] |= {label_of(word) for text in item["text"] for word in WORD.findall(text)}
    return {group: found - {None} for group, found in labels.items() if found - {None}}


def session_of(labels, emoji_with):
    """The session that owns most of these labels; of several, the one that owns the rarest label in training."""
    owned = collections.Counter(label // LABELS_OF_A_SESSION for label in labels)
    most = max(owned.values())
    rarest = min((label for label in labels if owned[label // LABELS_OF_A_SESSION] == most), key=lambda label: (emoji_with[label]["train"], label))
    return rarest // LABELS_OF_A_SESSION


def stream(items):
    """The items of the stream, by session, in the order of the source."""
    labels = labels_of_emoji(items)
    split = {item["group"]: item["split"] for item in items}
    emoji_with = [collections.Counter(split[group] for group in labels if label in labels[group]) for label in range(len(NAMES))]
    for name, counts in zip(NAMES, emoji_with):
        for of, least in LEAST.items():
            assert counts[of] >= least, f"{name}: {counts[of]} emoji in {of}, fewer than {least}"
    session = {group: session_of(of_emoji, emoji_with) for group, of_emoji in labels.items()}
    out = []
    for item in items:
        group, text = item["group"], without_labels(item["text"])
        if group in labels and text:
            flags = [int(label in labels[group]) for label in range(len(NAMES))]
            out.append(dict(task_id=session[group], split=item["split"], image=item["image"], text=text, label=flags, group=group))
    return sorted(out, key=lambda item: item["task_id"])


def names():
    """labels.json: the sessions' names, labels and class numbers."""
    first = range(0, len(NAMES), LABELS_OF_A_SESSION)
    return [dict(task_id=task, name=name, labels=list(labels), classes=list(range(start, start + LABELS_OF_A_SESSION)))
            for task, ((name, labels), start) in enumerate(zip(SESSIONS.items(), first))]


def report(items):
    """The tables of README.md."""
    for s, session in enumerate(names()):
        counts = collections.Counter(item["split"] for item in items if item["task_id"] == s)
        own = [sum(item["label"][c] for c in session["classes"]) for item in items if item["task_id"] == s]
        every = [sum(item["label"]) for item in items if item["task_id"] == s]
        print(f"| {s} | {session['name']} | {', '.join(session['labels'])} | " + " | ".join(f"{counts[of]:,}" for of in SPLITS)
              + f" | {sum(own) / len(own):.2f} | {sum(every) / len(every):.2f} |")
    counts = collections.Counter(item["split"] for item in items)
    print("| | | | " + " | ".join(f"{counts[of]:,}" for of in SPLITS) + f" | | {sum(sum(i['label']) for i in items) / len(items):.2f} |")
    for c, name in enumerate(NAMES):
        of_class = [item for item in items if item["label"][c]]
        counts = [sum(item["split"] == of for item in of_class) for of in SPLITS]
        elsewhere = sum(item["task_id"] != c // LABELS_OF_A_SESSION for item in of_class)
        print(f"| {name} | " + " | ".join(f"{n:,}" for n in counts) + f" | {elsewhere:,} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs from what the rules make")
    args = parser.parse_args()
    items = stream(json.loads(SOURCE.read_text()))
    lines = ",\n".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items)
    files = {"EMOJI-MULTILABEL.json": f"[\n{lines}\n]\n", "labels.json": json.dumps(names(), indent=1) + "\n"}
    if args.check:
        differing = [name for name, text in files.items() if (OUT / name).read_text() != text]
        sys.exit(f"{', '.join(differing)}: not what multilabel.py makes; run it without --check" if differing else 0)
    OUT.mkdir(exist_ok=True)
    for name, text in files.items():
        (OUT / name).write_text(text)
    report(items)


if __name__ == "__main__":
    main()
