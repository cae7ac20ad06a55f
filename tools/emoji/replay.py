#!/usr/bin/env python3
"""Sends every sample that `delo eval` has evaluated to a running server, and counts where the two differ.

    delo train --data data/emoji-cmml --all --out RUN --lr 1e-3
    delo eval --data data/emoji-cmml --partitions RUN --samples samples.jsonl
    delo serve --precision f32 --partitions RUN &
    python replay.py data/emoji-cmml samples.jsonl [PATH_OF_DELO [ADDRESS]]

Compared are the task that was decided and, where it is the true one, the label. The exit code is 1 where one differs.
`delo eval` computes in f32; a server that computes in bf16 differs in some answers. The last line is the
expected calibration error of the likeliest label's score, in 15 bins, over the samples whose task was decided rightly.
"""
import json, pathlib, subprocess, sys
from concurrent.futures import ThreadPoolExecutor


def main(data, samples, delo="delo", server="http://127.0.0.1:50051"):
    data = pathlib.Path(data)
    items = json.loads(next(path for path in data.glob("*.json") if path.name != "labels.json").read_text())
    records = [json.loads(line) for line in pathlib.Path(samples).read_text().splitlines()]

    def differs(record):
        item, pattern = items[record["item"]], record["pattern"]
        text = item["text"] if isinstance(item["text"], str) else ". ".join(item["text"])
        image, text = ["--image", data / "images" / record["image"]], [f"--text={text}"]
        given = (image if pattern != "text_only" else []) + (text if pattern != "image_only" else [])
        answer = json.loads(subprocess.check_output([delo, "classify", "--server", server, "--json", "--top-k", "1", *given]))
        found, expected = (answer["task"], answer["scores"][0]["label"]), (record["routed"][0], record["prediction"][0])
        # The prediction of `delo eval` is the label under the true task: it can be compared where that was decided.
        same = found == expected if expected[0] == record["task"] else found[0] == expected[0]
        if found[0] == record["task"]:
            decided.append((answer["scores"][0]["score"], found[1] in record["truth"]))
        return None if same else f"{record['image']} ({pattern}): server {found}, eval {expected}"

    decided = []
    with ThreadPoolExecutor(2) as pool:
        different = [text for text in pool.map(differs, records) if text]
    print("\n".join(different + [f"{len(records)} samples, {len(different)} differ"]))
    print(f"calibration error of the label: {100 * calibration_error(decided):.1f} %")
    return bool(different)


def calibration_error(decided, bins=15):
    error = 0
    for index in range(bins):
        own = [(score, right) for score, right in decided if index < score * bins <= index + 1]
        error += abs(sum(score - right for score, right in own)) / max(len(decided), 1)
    return error


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
