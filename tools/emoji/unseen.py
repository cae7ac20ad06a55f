#!/usr/bin/env python3
"""Makes sixty pictures that are in no training set of this project, and counts those that a server classifies
rightly.

    npm install @iconify-json/fluent-emoji-flat@1.2.6
    apt-get install fonts-symbola oxygen-icon-theme; apt-get download tuxpaint-stamps-default, unpacked by dpkg -x into STAMPS
    pip install pillow cairosvg
    python unseen.py make node_modules STAMPS data/emoji-cmml OUT
    delo serve &
    python unseen.py ask OUT [PATH_OF_DELO [ADDRESS]]

20 emoji of the test split in the art of a vendor that is in no training set (Fluent Emoji flat, MIT), 15 as
glyphs of the font Symbola, 15 of the photographs in stamps-heldout.txt (Tux Paint), 10 icons of the Oxygen
theme. All belong to the seven embedded sessions. A seed chooses them, except for the icons, which are named
below. The server gets the picture alone. Right: the task and the label of the session's class.
"""
import io, json, pathlib, random, subprocess, sys

from PIL import Image, ImageDraw, ImageFont

PHOTOGRAPHS = {
    "animals/birds": "animal-bird", "animals/fish": "animal-marine", "animals/insects": "animal-bug", "animals/mammals": "animal-mammal",
    "animals/amphibians": "animals-nature-other", "food/fruit": "food-fruit", "food/vegetables": "food-vegetable", "food/pizza": "food-prepared",
    "hobbies/music": "musical-instrument", "household/tools": "tool", "plants/flowers": "plant-flower", "clothes": "clothing",
    "sports": "sport", "vehicles/auto": "transport-ground", "vehicles/emergency": "transport-ground", "vehicles/masstransit": "transport-ground",
    "vehicles/flight": "transport-air", "space": "sky-weather",
}
ICONS = {
    "status/weather-clear": "sky-weather", "status/weather-storm": "sky-weather", "status/weather-showers": "sky-weather",
    "emotes/face-smile": "face-smiling", "emotes/face-sad": "face-concerned", "devices/camera-photo": "light-video", "devices/printer": "computer",
    "devices/computer-laptop": "computer", "devices/input-keyboard": "computer", "devices/input-mouse": "computer",
}


def make(modules, stamps, data, out):
    out.mkdir(parents=True, exist_ok=True)
    tasks = json.loads((data / "labels.json").read_text())[:7]
    task_of = {label: task["name"] for task in tasks for label in task["labels"]}
    emoji = {}
    for item in json.loads((data / "EMOJI-CMML.json").read_text()):
        if item["split"] == "test" and item["task_id"] < 7:
            emoji[item["image"].rsplit("-", 1)[0]] = tasks[item["task_id"]]["labels"][item["label"]]
    rng, truth = random.Random(0), {}
    names = sorted(emoji)
    rng.shuffle(names)

    import cairosvg
    art = json.loads((modules / "@iconify-json/fluent-emoji-flat/icons.json").read_text())
    wanted = json.loads((modules / "@iconify-json/fluent-emoji-flat/chars.json").read_text())
    for name in [n for n in names if n.replace("-fe0f", "") in wanted or n in wanted][:20]:
        icon = art["icons"][wanted.get(name) or wanted[name.replace("-fe0f", "")]]
        size = icon.get("width", art.get("width", 32))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">{icon["body"]}</svg>'
        Image.open(io.BytesIO(cairosvg.svg2png(svg.encode(), output_width=128, output_height=128))).save(out / f"fluent-{name}.png")
        truth[f"fluent-{name}.png"] = emoji.pop(name)

    font = ImageFont.truetype("/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf", 100)
    def glyph(character):
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).text((64, 64), character, font=font, fill="black", anchor="mm")
        return image

    missing, drawn = glyph("\U0010fffe").tobytes(), 0
    for name in names:
        if drawn == 15 or name not in emoji or "-" in name.replace("-fe0f", ""):
            continue
        image = glyph(chr(int(name.split("-")[0], 16)))
        if image.tobytes() == missing:
            continue
        image.save(out / f"symbola-{name}.png")
        truth[f"symbola-{name}.png"] = emoji[name]
        drawn += 1

    held = sorted((pathlib.Path(__file__).parent / "stamps-heldout.txt").read_text().split())
    rng.shuffle(held)
    root = stamps / "usr/share/tuxpaint/stamps"
    photos = [(place, label) for place in held for part, label in PHOTOGRAPHS.items() if place.startswith(part + "/") and (root / f"{place}.png").exists()]
    for place, label in photos[:15]:
        file = f"photo-{place.replace('/', '-')}.png"
        Image.open(root / f"{place}.png").save(out / file)
        truth[file] = label

    for place, label in ICONS.items():
        folder, name = place.split("/")
        file = f"icon-{name}.png"
        Image.open(f"/usr/share/icons/oxygen/base/128x128/{folder}/{name}.png").save(out / file)
        truth[file] = label
    (out / "truth.json").write_text(json.dumps({f: [task_of[l], l] for f, l in truth.items()}, indent=1) + "\n")
    print(len(truth), "pictures")


def ask(folder, delo="delo", server="http://127.0.0.1:50051"):
    truth = json.loads((folder / "truth.json").read_text())
    right, kinds = {}, {}
    for file, (task, label) in truth.items():
        answer = json.loads(subprocess.check_output([delo, "classify", "--server", server, "--json", "--image", folder / file, "--top-k", "1"]))
        kind = file.split("-")[0]
        found = answer["task"], answer["scores"][0]["label"]
        kinds[kind] = kinds.get(kind, 0) + 1
        right[kind] = right.get(kind, 0) + (found == (task, label))
        print(f"{'right' if found == (task, label) else 'wrong'}  {file}: {found[1]} ({found[0]})")
    for kind, n in kinds.items():
        print(f"{kind}: {right[kind]} of {n}")
    print(f"all: {sum(right.values())} of {len(truth)}")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    make(*map(pathlib.Path, rest)) if command == "make" else ask(pathlib.Path(rest[0]), *rest[1:])
