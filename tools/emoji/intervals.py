#!/usr/bin/env python3
"""AP and routing accuracy with 95 % intervals, from files of `delo eval --samples FILE`.

    python intervals.py adapters.jsonl linear.jsonl paper.jsonl [--rule 0] [--draws 2000]

Also prints paired differences to the first file. Items of one group are not independent (three vendors draw
one emoji): a bootstrap draws groups, with replacement, within each task, the same groups for every file. A
file without the field is taken to be of Emoji-CMML. AP is the mean over tasks of the accuracy, in %.
Task-agnostic: an item of a wrongly chosen task counts as wrong. --rule numbers the task-agnostic columns of
the evaluation.
"""
import argparse, collections, json, random

PATTERNS = "complete", "image_only", "text_only"


def read(path, rule):
    """Task → group → item → (right with the task given, right with the task chosen, right task, pattern)."""
    tasks = collections.defaultdict(lambda: collections.defaultdict(dict))
    for line in open(path):
        item = json.loads(line)
        label = item["prediction"] == item["truth"]
        routed = item["routed"][rule] == item["task"]
        group = item["group"] or f"item {item['item']}" if "group" in item else item["image"].rsplit("-", 1)[0]
        tasks[item["task"]][group][item["item"]] = (label, label and routed, routed, item["pattern"])
    return tasks


def figures(tasks, drawn):
    """Of the drawn groups of each task: AP with the task given, AP with it chosen, routing accuracy; in %."""
    rows = [[row for group in drawn[task] for row in tasks[task][group].values()] for task in tasks]
    mean = lambda values: 100 * sum(values) / max(1, len(values))
    ap = [sum(mean([row[i] for row in task]) for task in rows) / len(rows) for i in (0, 1)]
    return [*ap, mean([row[2] for task in rows for row in task])]


def interval(values):
    values = sorted(values)
    return values[int(0.025 * len(values))], values[int(0.975 * len(values)) - 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rule", type=int, default=0)
    parser.add_argument("--draws", type=int, default=2000)
    args = parser.parse_args()
    data = [read(path, args.rule) for path in args.files]
    groups = {task: sorted(data[0][task]) for task in data[0]}
    for path, other in zip(args.files, data):
        if {(task, g, item) for task in other for g in other[task] for item in other[task][g]} != {
            (task, g, item) for task in data[0] for g in data[0][task] for item in data[0][task][g]
        }:
            raise SystemExit(f"{path} holds other items than {args.files[0]}: evaluate both on the same split and missing table")
    rng = random.Random(0)
    draws = [{task: rng.choices(names, k=len(names)) for task, names in groups.items()} for _ in range(args.draws)]
    names = "oracle AP", "agnostic AP", "routing"
    spread = [[figures(tasks, drawn) for drawn in draws] for tasks in data]
    for n, (path, tasks) in enumerate(zip(args.files, data)):
        found = figures(tasks, groups)
        print(path)
        for i, name in enumerate(names):
            low, high = interval([s[i] for s in spread[n]])
            line = f"  {name:12} {found[i]:5.1f}  [{low:.1f}, {high:.1f}]"
            if n:
                first = figures(data[0], groups)[i]
                low, high = interval([a[i] - b[i] for a, b in zip(spread[n], spread[0])])
                line += f"   minus the first {found[i] - first:+5.1f}  [{low:+.1f}, {high:+.1f}]"
            print(line)
        rows = [row for task in tasks.values() for group in task.values() for row in group.values()]
        for i, name in enumerate(names):
            shares = (f"{p} {100 * sum(r[i] for r in rows if r[3] == p) / max(1, sum(r[3] == p for r in rows)):.1f}" for p in PATTERNS)
            print(f"  {name.replace(' AP', ''):12} by pattern: {', '.join(shares)}")


if __name__ == "__main__":
    main()
