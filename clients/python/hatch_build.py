"""Generates the code of the protos into the wheel, and puts the protos into the sdist, which is built without the repository."""
from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CONTRACT = "delo/v1/classifier.proto"
WIRE = "delo_client/wire.proto"


class ProtoHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        # In an unpacked sdist, and in the repository.
        places = [root / "proto", root.parent.parent / "proto"]
        protos = next((place for place in places if (place / CONTRACT).is_file()), None)
        if protos is None:
            raise FileNotFoundError(f"{CONTRACT} is in none of {', '.join(map(str, places))}")
        if self.target_name == "sdist":
            build_data["force_include"][str(protos / CONTRACT)] = f"proto/{CONTRACT}"
            return
        generated = root / "src/delo_client/_generated"
        generated.mkdir(exist_ok=True)
        (generated / "__init__.py").write_text("")
        with tempfile.TemporaryDirectory() as out:
            protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"-I{root / 'src'}"]
            subprocess.run([*protoc, f"--python_out={out}", f"--pyi_out={out}", CONTRACT, WIRE], check=True)
            for module in Path(out).rglob("*_pb2.py*"):
                (generated / module.name).write_text(module.read_text())
