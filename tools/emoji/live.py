#!/usr/bin/env python3
"""What an operator sees of routing accuracy, beside `delo eval` on the same samples: by reported outcomes, and by the
probabilities alone, where the truth never comes.

    delo eval --data data/emoji-cmml --partitions RUN --samples samples.jsonl
    delo serve --precision f32 --partitions RUN --metrics-listen 127.0.0.1:9464 &
    prometheus --config.file deploy/prometheus/prometheus.yml &
    python live.py data/emoji-cmml samples.jsonl [--shifted] [--server ADDRESS] [--prometheus URL]

Each sample is classified and its true task reported; then Prometheus is asked for the dashboard's figures over the last
hour, so that both must have been started for this. With --shifted, pictures lose their colours and four fifths of their
resolution, and texts every second word: samples as nobody trained with. Needs delo-client and Pillow.
"""
import argparse, io, json, pathlib, time, urllib.parse, urllib.request

from delo_client import Client
from PIL import Image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("samples", type=pathlib.Path)
    parser.add_argument("--shifted", action="store_true")
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--pause", type=float, default=35.0, help="seconds until Prometheus has seen the last sample")
    args = parser.parse_args()
    items = json.loads(next(path for path in args.data.glob("*.json") if path.name != "labels.json").read_text())
    records = [json.loads(line) for line in args.samples.read_text().splitlines()]

    client, right, expected, agree = Client(args.server), 0, 0.0, 0
    for record in records:
        item, pattern = items[record["item"]], record["pattern"]
        text = item["text"] if isinstance(item["text"], str) else ". ".join(item["text"])
        image = args.data / "images" / record["image"]
        if args.shifted:
            image, text = blurred(image), " ".join(text.split()[::2])
        answer = client.classify(image if pattern != "text_only" else None, text if pattern != "image_only" else None, timeout=60)
        client.report_outcome(request_id=answer.request_id, true_task=record["task"])
        right += answer.task == record["task"]
        agree += answer.task == record["routed"][0]
        expected += answer.probability
    count, of_eval = len(records), sum(record["routed"][0] == record["task"] for record in records)
    time.sleep(args.pause)
    ask = lambda query: number(args.prometheus, query)
    reported, told = ask("job:delo_routing_accuracy:ratio_1h"), ask("job:delo_routing_expected_accuracy:ratio_1h")
    print(f"{count} samples{', shifted' if args.shifted else ''}; {agree} routed as by delo eval")
    print(f"routing accuracy, delo eval:            {100 * of_eval / count:.2f} %  ({of_eval})")
    print(f"routing accuracy, answers:              {100 * right / count:.2f} %  ({right})")
    print(f"routing accuracy, dashboard:            {100 * reported:.2f} %")
    print(f"expected without truth, answers:        {100 * expected / count:.2f} %  (error {100 * (expected - right) / count:+.2f})")
    print(f"expected without truth, dashboard:      {100 * told:.2f} %")
    print(f"drift, the largest index of a task:     {ask('max(job_task:delo_routing_drift:psi_1h)'):.2f}")


def blurred(path):
    with Image.open(path) as picture:
        grey = picture.convert("RGBA").convert("LA")
        small = grey.resize((max(8, grey.width // 5), max(8, grey.height // 5)), Image.Resampling.BOX).resize(grey.size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    small.save(out, "PNG")
    return out.getvalue()


def number(prometheus, query):
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        result = json.load(answer)["data"]["result"]
    return float(result[0]["value"][1]) if result else float("nan")


if __name__ == "__main__":
    main()
