"""One shell for each page: its commands run in order, as a reader types them, and nothing of them is left running."""
import contextlib
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

# The longest that one block or command may take, in seconds.
TIMEOUT = 120


class Session:
    """A bash whose working directory is `directory`."""

    def __init__(self, directory: Path, environment: dict[str, str], scratch: Path):
        self.scratch, self.count = scratch, 0
        self.status, status = os.pipe()
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[status],
            start_new_session=True,
        )
        self.status_in_shell = status
        os.close(status)

    def run(self, commands: str, stop_at_failure: bool) -> tuple[int | None, str]:
        """Exit code and output. None: the shell ended, by a command that failed where that ends it, or by the timeout."""
        self.count += 1
        script, output = self.scratch / f"{self.count}.sh", self.scratch / f"{self.count}.out"
        script.write_text(commands)
        options = "set -e -o pipefail" if stop_at_failure else "set +e +o pipefail"
        fd = self.status_in_shell
        line = f"{options}; . {script} > {output} 2>&1 < /dev/null {fd}>&-; echo $? >&{fd}\n"
        with contextlib.suppress(BrokenPipeError):
            self.shell.stdin.write(line.encode())
            self.shell.stdin.flush()
        ready, _, _ = select.select([self.status], [], [], TIMEOUT)
        told = os.read(self.status, 64).decode().strip() if ready else ""
        text = output.read_text(errors="replace") if output.exists() else ""
        if not ready:
            text += f"\n(not done after {TIMEOUT} s)"
        return (int(told) if told else None), text

    def close(self) -> None:
        """Ends the servers that the page started, and the shell."""
        with contextlib.suppress(BrokenPipeError, OSError):
            self.shell.stdin.write(b"set +e; kill $(jobs -p) 2>/dev/null; wait; exit\n")
            self.shell.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.shell.wait(timeout=15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.shell.pid, signal.SIGTERM)
            for _ in range(50):
                os.killpg(self.shell.pid, 0)
                time.sleep(0.02)
            os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.wait()
        os.close(self.status)


# Numbers with a decimal point may differ by this much: other processors and number formats round otherwise.
TOLERANCE = 0.03
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TOKEN = re.compile(r"…|\d+\.\d+|.", re.DOTALL)


def agrees(expected: str, output: str) -> bool:
    """Whether `output` is what the page shows: blanks and line ends aside, and with anything for `…` and for a UUID."""
    expected = UUID.sub("…", expected)
    expected, output = "".join(expected.split()), "".join(output.split())
    pattern, numbers = "", []
    for token in TOKEN.findall(expected):
        if token == "…":
            pattern += ".*?"
        elif "." in token and len(token) > 1:
            pattern += r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
            numbers.append(float(token))
        else:
            pattern += re.escape(token)
    match = re.fullmatch(pattern, output, re.DOTALL)
    return match is not None and all(abs(a - float(b)) <= TOLERANCE for a, b in zip(numbers, match.groups(), strict=True))
