#!/usr/bin/env python3
"""Holds the dashboards of this folder to Grafana's own types: the classes of `grafana-foundation-sdk`, which Grafana generates
from the schemas that its panels are written in.

    pip install grafana-foundation-sdk && deploy/grafana/check.py [DASHBOARD.json...]

A dashboard holds if nothing is lost between reading it into these classes and writing it again (a key that is lost is one that
the schema does not know), if every value has the type, or is one of the values, that its field declares, and if no panel is drawn over another.
"""
import collections.abc, enum, json, pathlib, sys, types, typing

from grafana_foundation_sdk.cog import plugins, runtime
from grafana_foundation_sdk.models import dashboard as schema


def main():
    plugins.register_default_plugins()
    paths = [pathlib.Path(path) for path in sys.argv[1:]] or sorted(pathlib.Path(__file__).parent.glob("*.json"))
    failures = []
    for path in paths:
        written = json.loads(path.read_text())
        read = schema.Dashboard.from_json(written)
        panels = [panel for panel in all_panels(read.panels or []) if isinstance(panel, schema.Panel)]
        found = list(lost(written, plain(read), ""))
        for panel in panels:
            if panel.type_val not in runtime.Runtime().panelcfg_variants:
                found.append(f"panel {panel.title!r}: {panel.type_val} is no panel type of the schema")
            for target in panel.targets or []:
                if isinstance(target, runtime.UnknownDataquery):
                    found.append(f"panel {panel.title!r}: a query of no known data source")
        values = Values()
        values.check(read, schema.Dashboard, "")
        # Only numbers can be compared.
        found += values.wrong or overlaps(panels)
        failures += [f"{path}: {fault}" for fault in found]
        print(f"{path.name}: {len(panels)} panels, {sum(len(panel.targets or []) for panel in panels)} queries, {values.count} typed values")
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


# What an annotation's query of the Prometheus data source holds beyond the schema of annotations.
OF_PROMETHEUS = ("titleFormat", "textFormat")


def all_panels(panels):
    for panel in panels:
        yield panel
        if isinstance(panel, schema.RowPanel):
            yield from all_panels(panel.panels or [])


def plain(value):
    """The JSON that a value of the schema is written as."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def lost(written, kept, where):
    """Where `kept` lacks or changes something of `written`. What the schema adds, its defaults, is no fault."""
    if isinstance(written, dict) and isinstance(kept, dict):
        for key, value in written.items():
            # A field without a value may be left out.
            if key in kept or value is None:
                yield from lost(value, kept.get(key), f"{where}.{key}")
            elif not (where.startswith(".annotations.list") and key in OF_PROMETHEUS):
                yield f"{where}.{key} is unknown to the schema"
    elif isinstance(written, list) and isinstance(kept, list) and len(written) == len(kept):
        for index, pair in enumerate(zip(written, kept)):
            yield from lost(*pair, f"{where}[{index}]")
    elif written != kept:
        yield f"{where} is read as {kept!r}, but is {written!r}"


def overlaps(panels):
    """Pairs of panels that share a place of the grid, which is 24 columns wide."""
    for index, one in enumerate(panels):
        a = one.grid_pos
        if a.x + a.w > 24:
            yield f"panel {one.title!r} is wider than the grid"
        for other in panels[index + 1 :]:
            b = other.grid_pos
            if a.x < b.x + b.w and b.x < a.x + a.w and a.y < b.y + b.h and b.y < a.y + a.h:
                yield f"panels {one.title!r} and {other.title!r} overlap"


class Values:
    """Compares every value with the annotation of its field."""

    def __init__(self):
        self.count, self.wrong = 0, []

    def check(self, value, hint, where):
        self.count += 1
        # Lists of objects stay as they were read.
        if isinstance(value, dict) and hasattr(hint, "from_json"):
            decoded = hint.from_json(value)
            self.wrong += lost(value, plain(decoded), where)
            value = decoded
        if not self.fits(value, hint):
            self.wrong.append(f"{where}: {value!r} is no {hint}")
        if type(value).__module__.startswith("grafana_foundation_sdk.models") and not isinstance(value, enum.Enum):
            for name, inner in typing.get_type_hints(type(value)).items():
                # A field that may be absent is None.
                if (held := getattr(value, name, None)) is not None:
                    self.check(held, inner, f"{where}.{name}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.check(item, (typing.get_args(hint) or (typing.Any,))[0] if typing.get_origin(hint) is list else typing.Any, f"{where}[{index}]")

    def fits(self, value, hint):
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint in (typing.Any, object) or isinstance(hint, typing.TypeVar):
            return True
        if origin in (typing.Union, types.UnionType):
            return any(self.fits(value, arg) for arg in args)
        if origin is typing.Literal:
            return value in args
        if origin in (list, collections.abc.Sequence):
            return isinstance(value, list)
        if origin is dict:
            return isinstance(value, dict)
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return isinstance(value, hint) or value in [member.value for member in hint]
        if hint is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        if hint is int:
            return isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, hint) if isinstance(hint, type) else True


if __name__ == "__main__":
    main()
