#!/usr/bin/env python3
"""A fleet on one machine: three delo servers that follow a registry in an S3 bucket, nginx before them and one
Prometheus beside them. Clients classify all the while; replicas are killed, drained, cut from the registry and stopped.

    python fleet.py --delo target/release/delo --versions OLD.safetensors NEW.safetensors

The two files are partitions of one task that the server's binary lacks. Prints a table; exit code 1 where a figure is
not as it must be. All addresses are on the loopback; a run takes less than three minutes. README.md explains it.
"""
import argparse, collections, contextlib, dataclasses, itertools, json, os, pathlib, re, shutil, signal, socket
import subprocess, sys, tempfile, threading, time, urllib.error, urllib.parse, urllib.request, uuid

from delo_client import Client, DeloError, NotFound

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
DATA = REPOSITORY / "data/emoji-cmml"
POLL_SECONDS = 2.0
REGISTRY = "s3://fleet/delo"
#: Seconds: a pause between polls is POLL_SECONDS at most; then the partition is fetched, checked and warmed.
TAKEN_WITHIN = POLL_SECONDS + 2.0
#: Seconds: after failures a pause is eight polls at most.
CAUGHT_UP_WITHIN = 8 * POLL_SECONDS + 2.0
LONGEST_RUN = 175.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delo", type=pathlib.Path, default=REPOSITORY / "target/release/delo")
    parser.add_argument("--versions", type=pathlib.Path, nargs=2, required=True, metavar=("OLD", "NEW"))
    parser.add_argument("--task", default="symbols", help="the task of both files")
    parser.add_argument("--threads", type=int, default=6, help="client threads")
    parser.add_argument("--rate", type=float, default=24.0, help="calls to Classify a second, of all threads together")
    parser.add_argument("--admit", choices=["at-once", "in-sync"], default="at-once",
                        help="when nginx gets a server back that starts again: as soon as its port is open, or by a reload when it is ready and in sync with the registry")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and configurations")
    args = parser.parse_args()
    if not 0 < args.rate <= 100:
        parser.error("--rate: more than 0 and at most 100")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("the run took too long"))
    signal.alarm(int(LONGEST_RUN))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="delo-fleet-"))
    figures = Figures()
    try:
        with contextlib.ExitStack() as stack:
            Scenario(args, folder, stack, figures).run()
    finally:
        if args.keep or figures.failed:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if figures.failed else 0)


class Figures:
    """The table: what was measured, and whether it is as it must be."""

    def __init__(self):
        self.failed = False

    def row(self, name, value, holds=None):
        self.failed |= holds is False
        print(f"{name:<64} {value:<40} {'' if holds is None else 'ok' if holds else 'FAILED'}".rstrip(), flush=True)


class Scenario:
    def __init__(self, args, folder, stack, figures):
        self.args, self.folder, self.stack, self.figures = args, folder, stack, figures

    def run(self):
        self.start_registry()
        self.start_replicas()
        self.start_nginx()
        self.start_prometheus()
        traffic = self.stack.enter_context(Traffic(self.args, self.listen, self.loaded_tasks()))
        time.sleep(5)
        self.promote(self.old, "promotion")
        traffic.add_task(self.args.task)
        time.sleep(8)
        self.drain(self.replicas[1])
        time.sleep(4)
        self.cut(self.replicas[2])
        time.sleep(2)
        self.stop_for(self.replicas[1], 2.0)
        time.sleep(3)
        self.promote(self.old, "roll-back")
        time.sleep(4)
        # The last, so that the server in its place counts its versions from 1 while the others are at 3.
        self.kill(self.replicas[0])
        time.sleep(10)
        traffic.stop()
        self.traffic_figures(traffic)
        time.sleep(5)
        self.prometheus_figures(traffic)

    # What runs.

    def spawn(self, name, command, environment=None):
        """Starts a program; it is killed at the end of the run, if not before."""
        log = self.stack.enter_context(open(self.folder / f"{name}.log", "ab"))
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env={**os.environ, **(environment or {})}, cwd=self.folder)
        self.stack.callback(end, process)
        return process

    def start_registry(self):
        port, self.proxy = free_port(), self.stack.enter_context(Proxy())
        self.proxy.open(port)
        self.spawn("moto", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port])
        self.s3 = {"AWS_ACCESS_KEY_ID": "fleet", "AWS_SECRET_ACCESS_KEY": "fleet", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT": f"http://127.0.0.1:{port}"}
        bucket = urllib.request.Request(f"http://127.0.0.1:{port}/fleet", method="PUT")
        wait_for("the S3 server", 20, lambda: opened(bucket))
        self.old, self.new = (re.search(rf"task {self.args.task}, ([0-9a-f]+)", self.registry("push", path.resolve())).group(1) for path in self.args.versions)
        if self.old == self.new:
            sys.exit("--versions: two different files are needed")

    def registry(self, *command):
        command = [str(self.args.delo.resolve()), "registry", *map(str, command), "--registry", REGISTRY]
        done = subprocess.run(command, env={**os.environ, **self.s3}, capture_output=True, text=True, timeout=30)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def start_replicas(self):
        self.replicas = [Replica("abc"[i], *(f"127.0.0.1:{free_port()}" for _ in range(3))) for i in range(3)]
        for replica in self.replicas:
            self.start(replica)
        for replica in self.replicas:
            replica.wait_until_ready()

    def start(self, replica, empty_state=True):
        """Starts a server at the replica's addresses: another one with an empty state directory, or the same again."""
        if empty_state:
            replica.state = self.folder / f"state-{replica.name}-{replica.starts}"
        replica.starts += 1
        environment = {**self.s3, "DELO_REGISTRY__MANIFEST": REGISTRY, "DELO_REGISTRY__POLL_SECONDS": str(POLL_SECONDS), "DELO_CATALOGUE__STATE_DIR": str(replica.state)}
        if replica.name == "c":
            environment["AWS_ENDPOINT"] = f"http://127.0.0.1:{self.proxy.port}"
        command = [self.args.delo.resolve(), "serve", "--threads", 1, "--listen", replica.address, "--admin-listen", replica.admin, "--metrics-listen", replica.metrics]
        replica.process = self.spawn(f"replica-{replica.name}", command, environment)

    def start_nginx(self):
        self.listen = f"127.0.0.1:{free_port()}"
        path = self.configure_nginx()
        self.nginx = self.spawn("nginx", ["nginx", "-e", self.folder / "nginx-error.log", "-p", self.folder, "-c", path])
        with Client(self.listen) as client:
            wait_for("nginx", 10, lambda: ready(client))

    def configure_nginx(self, without=None):
        servers = "\n".join(f"        server {each.address} max_fails=1 fail_timeout=1s{' down' if each is without else ''};" for each in self.replicas)
        return self.fill("nginx.conf", DIR=self.folder, LISTEN=self.listen, SERVERS=servers)

    def start_again(self, replica, empty_state):
        """Starts a server at the replica's addresses and waits until it is ready. With --admit in-sync nginx sends it
        nothing before it serves what the registry makes live. Returns the seconds until it was ready, and whether it
        had the task then."""
        if self.args.admit == "in-sync":
            self.configure_nginx(without=replica)
            self.nginx.send_signal(signal.SIGHUP)
            time.sleep(0.5)
        began = time.monotonic()
        self.start(replica, empty_state)
        replica.wait_until_ready()
        ready_after, complete = time.monotonic() - began, replica.digest(self.args.task) is not None
        if self.args.admit == "in-sync":
            wait_for(f"replica {replica.name} to be in sync", 30, replica.in_sync, 0.1)
            self.configure_nginx()
            self.nginx.send_signal(signal.SIGHUP)
        return ready_after, complete

    def start_prometheus(self):
        self.prometheus = f"127.0.0.1:{free_port()}"
        targets = ", ".join(f'"{replica.metrics}"' for replica in self.replicas)
        path = self.fill("prometheus.yml", RULES=REPOSITORY / "deploy/prometheus/rules", TARGETS=targets)
        self.spawn("prometheus", ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={self.folder / 'tsdb'}", f"--web.listen-address={self.prometheus}"])
        wait_for("Prometheus", 30, lambda: opened(f"http://{self.prometheus}/-/ready"))

    def fill(self, name, **values):
        text = (HERE / name).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        path = self.folder / name
        path.write_text(text)
        return path

    def loaded_tasks(self):
        return [each.task for each in self.replicas[0].client.describe().tasks]

    # What happens.

    def promote(self, version, what):
        self.registry("promote", f"{self.args.task}@{version}")
        seconds = self.seconds_until_served(version, self.replicas)
        shown = ", ".join(f"{name} {took:.1f}" for name, took in seconds.items())
        self.figures.row(f"{what}: seconds until each replica serves it", shown, max(seconds.values()) <= TAKEN_WITHIN)

    def seconds_until_served(self, version, replicas):
        began, seconds = time.monotonic(), {}
        while len(seconds) < len(replicas) and time.monotonic() - began < 30:
            for replica in replicas:
                if replica.name not in seconds and (replica.digest(self.args.task) or "").startswith(version):
                    seconds[replica.name] = time.monotonic() - began
            time.sleep(0.05)
        return {replica.name: seconds.get(replica.name, float("inf")) for replica in replicas}

    def kill(self, replica):
        replica.process.kill()
        replica.process.wait()
        time.sleep(3)
        began = time.monotonic()
        took, complete = self.start_again(replica, empty_state=True)
        self.seconds_until_served(self.old, [replica])
        served = time.monotonic() - began
        self.figures.row("kill -9 of a: seconds from the new process to ready", f"{took:.1f}")
        self.figures.row("  … to the registry's version, with an empty state directory", f"{served:.1f}", served - took <= TAKEN_WITHIN)
        # A server that is ready before it has followed the manifest answers without the task for a moment.
        self.figures.row("  had what the registry makes live when it was ready", "yes" if complete else "no", complete if self.args.admit == "at-once" else None)

    def drain(self, replica):
        began = time.monotonic()
        replica.process.terminate()
        code = replica.process.wait(timeout=40)
        self.figures.row("SIGTERM of b: seconds until it ended; exit code", f"{time.monotonic() - began:.1f}; {code}", code == 0)
        time.sleep(2)
        took, _ = self.start_again(replica, empty_state=False)
        kept = (replica.digest(self.args.task) or "").startswith(self.old)
        self.figures.row("  started again, from its state directory: seconds to ready", f"{took:.1f}", kept)

    def cut(self, replica):
        in_sync = f'delo_registry_in_sync{{instance="{replica.metrics}"}}'
        self.proxy.close()
        began = time.monotonic()
        wait_for("delo_registry_in_sync to fall", 20, lambda: self.number(in_sync) == 0)
        self.figures.row("c cut from the registry: seconds until Prometheus shows it", f"{time.monotonic() - began:.1f}", True)
        self.registry("promote", f"{self.args.task}@{self.new}")
        others = [each for each in self.replicas if each is not replica]
        seconds = self.seconds_until_served(self.new, others)
        shown = ", ".join(f"{name} {took:.1f}" for name, took in seconds.items())
        self.figures.row("  promotion meanwhile: seconds until a and b serve it", shown, max(seconds.values()) <= TAKEN_WITHIN)
        answer = replica.client.classify(text="arrow", task=self.args.task)
        old = (replica.digest(self.args.task) or "").startswith(self.old)
        self.figures.row("  c answers as before, by the version before", "yes" if old and answer.label else "no", bool(old and answer.label))
        time.sleep(2)
        self.figures.row("  delo_registry_in_sync in Prometheus", self.by_instance("delo_registry_in_sync"), self.number("sum(delo_registry_in_sync)") == 2)
        pending = sorted({alert["labels"]["alertname"] for alert in self.ask("/api/v1/alerts")["alerts"]})
        self.figures.row("  alerts that wait for their time to pass", ", ".join(pending), "DeloRegistryOutOfSync" in pending)
        self.proxy.reopen()
        took = self.seconds_until_served(self.new, [replica])[replica.name]
        self.figures.row("  reopened: seconds until c serves the promoted version", f"{took:.1f}", took <= CAUGHT_UP_WITHIN)

    def stop_for(self, replica, seconds):
        replica.process.send_signal(signal.SIGSTOP)
        self.stack.callback(resume, replica.process)
        self.stopped = (time.time(), time.time() + seconds)
        time.sleep(seconds)
        replica.process.send_signal(signal.SIGCONT)

    # What is measured.

    def traffic_figures(self, traffic):
        row, counts = self.figures.row, traffic.counts
        seconds = sorted(traffic.seconds)
        row("traffic: seconds; calls of Classify; a second", f"{traffic.lasted:.0f}; {counts['calls']}; {counts['calls'] / traffic.lasted:.1f}")
        row("failed calls, after the client's retries", str(counts["failed"]), counts["failed"] == 0)
        for failure, count in traffic.failures.most_common(5):
            row(f"  {count} × {failure}", "")
        row("calls that were tried again; attempts in all", f"{counts['retried']}; {counts['attempts']}")
        row("latency as callers see it, ms: median; p99; longest", "; ".join(f"{1000 * seconds[min(len(seconds) - 1, int(q * len(seconds)))]:.0f}" for q in (0.5, 0.99, 1)))
        row("answers that differ from the named task", str(counts["other task"]), counts["other task"] == 0)
        row("reports of outcomes: sent; failed; sent again by the test", f"{counts['reports']}; {counts['reports failed']}; {counts['reports again']}", counts["reports failed"] == 0)
        row("  whose request_id the replica knew that nginx chose", str(counts["reports known"]))
        names = {replica.address: replica.name for replica in self.replicas}
        log = [json.loads(line) for line in (self.folder / "nginx-access.log").read_text().splitlines()]
        calls = [entry for entry in log if entry["method"].endswith("/Classify")]
        answered = collections.Counter(names.get(entry["upstream"].split(", ")[-1], "none") for entry in calls if status(entry) == "0")
        row("answers by replica (nginx)", ", ".join(f"{name} {answered[name]}" for name in sorted(answered)), all(answered[each.name] for each in self.replicas))
        row("attempts that nginx sent to a second replica itself", str(sum(", " in entry["upstream"] for entry in calls)))
        bad = collections.Counter(f"{names.get(entry['upstream'].split(', ')[-1], 'nginx')}: {status(entry)} {urllib.parse.unquote(entry['message'])}".strip() for entry in calls if status(entry) != "0")
        row("attempts through nginx without an answer", str(sum(bad.values())))
        for what, count in bad.most_common(8):
            row(f"  {count} × {what}", "")
        slow = [entry["seconds"] for entry in log if self.stopped[0] <= entry["time"] <= self.stopped[1] + 1]
        row("b stopped for 2 s: calls that ended meanwhile; took over 1 s", f"{len(slow)}; {sum(each > 1 for each in slow)}")

    def prometheus_figures(self, traffic):
        row, task = self.figures.row, self.args.task
        accuracy = self.number("job:delo_routing_accuracy:ratio_1h")
        of_calls = traffic.counts["right"] / max(1, traffic.counts["reported"])
        row("routing accuracy of the fleet, Prometheus", f"{100 * accuracy:.1f} %", abs(accuracy - of_calls) < 0.03)
        row("  by the answers whose truth was reported", f"{100 * of_calls:.1f} % of {traffic.counts['reported']}")
        row("  expected without truth, Prometheus", f"{100 * self.number('job:delo_routing_expected_accuracy:ratio_1h'):.1f} %")
        versions = self.ask_metric(f'delo_partition_info{{task="{task}"}}')
        shown = ", ".join(f"{self.name_of(each)} {each['metric']['version']}" for each in versions)
        row(f"versions of {task} by instance", shown, len(versions) == 3)
        digests = {replica.digest(task) for replica in self.replicas}
        row(f"one artifact of {task} everywhere (Describe)", ", ".join(str(digest)[:12] for digest in digests), len(digests) == 1)
        row("delo_registry_in_sync by instance", self.by_instance("delo_registry_in_sync"), self.number("sum(delo_registry_in_sync)") == 3)
        row("delo_registry_revision by instance", self.by_instance("delo_registry_revision"), self.number("count(count_values('r', delo_registry_revision))") == 1)
        pending = sorted({alert["labels"]["alertname"] for alert in self.ask("/api/v1/alerts")["alerts"]})
        row("alerts at the end, firing or waiting", ", ".join(pending) or "none", not pending)

    def by_instance(self, metric):
        return ", ".join(f"{self.name_of(each)} {each['value'][1]}" for each in self.ask_metric(metric))

    def name_of(self, sample):
        return next((replica.name for replica in self.replicas if replica.metrics == sample["metric"].get("instance")), "?")

    def number(self, query):
        result = self.ask_metric(query)
        return float(result[0]["value"][1]) if result else float("nan")

    def ask_metric(self, query):
        found = self.ask(f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")["result"]
        return sorted(found, key=lambda each: self.name_of(each))

    def ask(self, path):
        with urllib.request.urlopen(f"http://{self.prometheus}{path}", timeout=10) as answer:
            return json.load(answer)["data"]


@dataclasses.dataclass
class Replica:
    name: str
    address: str
    admin: str
    metrics: str
    state: pathlib.Path = None
    process: subprocess.Popen = None
    starts: int = 0

    @property
    def client(self):
        if not hasattr(self, "_client"):
            self._client = Client(self.address, timeout=5)
        return self._client

    def wait_until_ready(self):
        wait_for(f"replica {self.name}", 20, lambda: ready(self.client), 0.05)

    def in_sync(self):
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=2) as answer:
            return re.search(r"^delo_registry_in_sync 1$", answer.read().decode(), re.MULTILINE) is not None

    def digest(self, task):
        """SHA-256 of the task's live partition; ``None`` where it has none."""
        return next((each.digest for each in self.client.describe([task]).tasks), None)


class Traffic:
    """Client threads that classify test items at a steady rate. A thread whose call takes long sends the next ones late,
    never two at once."""

    def __init__(self, args, server, tasks):
        names = {each["task_id"]: each["name"] for each in json.loads((DATA / "labels.json").read_text())}
        items = [(names[each["task_id"]], each) for each in json.loads((DATA / "EMOJI-CMML.json").read_text()) if each["split"] == "test"]
        self.items, self.server, self.tasks = items, server, set(tasks)
        self.interval, self.count = args.threads / args.rate, args.threads
        self.counts, self.failures, self.seconds = collections.Counter(), collections.Counter(), []
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.order = itertools.count()

    def __enter__(self):
        self.began = time.monotonic()
        self.threads = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.count)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def add_task(self, task):
        self.tasks = self.tasks | {task}

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(timeout=40)
        if not hasattr(self, "lasted"):
            self.lasted = time.monotonic() - self.began

    def next_item(self):
        """The next item of a task that is loaded, and its number."""
        while True:
            number = next(self.order)
            # The items stand task after task: a stride mixes them.
            task, item = self.items[number * 131 % len(self.items)]
            if task in self.tasks:
                return number, task, item

    def work(self, index):
        attempts = collections.Counter()

        def token():
            # The client asks for the token before each attempt: this counts them. The servers ask for none.
            attempts["made"] += 1
            return "none"

        due = time.monotonic() + index * self.interval / self.count
        with Client(self.server, token=token) as client:
            while not self.ended.wait(max(0.0, due - time.monotonic())):
                due = max(due + self.interval, time.monotonic())
                with self.lock:
                    number, task, item = self.next_item()
                self.classify(client, attempts, number, task, item)

    def classify(self, client, attempts, number, task, item):
        text = item["text"] if isinstance(item["text"], str) else ". ".join(item["text"])
        image = DATA / "images" / item["image"]
        # By turns both, text alone, both, image alone; each fourth call names its task.
        image, text = (image if number % 4 != 1 else None), (text if number % 4 != 3 else None)
        named = task if number % 16 in (0, 5, 10, 15) else None
        made, began = attempts["made"], time.monotonic()
        try:
            answer, failure = client.classify(image, text, task=named, request_id=str(uuid.uuid4()), top_k=1), None
        except DeloError as error:
            answer, failure = None, f"{error.code.name}: {error.message}"
        took, tried = time.monotonic() - began, attempts["made"] - made
        with self.lock:
            self.seconds.append(took)
            self.counts.update({"calls": 1, "attempts": tried, "retried": tried > 1, "failed": failure is not None})
            if failure:
                self.failures[failure] += 1
            elif named:
                self.counts["other task"] += answer.task != named
        if answer and not named and number % 3 == 0:
            self.report(client, answer, task)

    def report(self, client, answer, task):
        """Reports the truth by request_id, and where the balancer has reached a replica that did not give that answer,
        by the task that was chosen. The client does not try the second kind of report again; the test does."""
        known, failure, tries = False, None, 0
        for tries in range(1, 6):
            try:
                try:
                    client.report_outcome(answer.request_id, true_task=task)
                    known = True
                except NotFound:
                    client.report_outcome(task=answer.routed_task, true_task=task)
                failure = None
                break
            except DeloError as error:
                failure = f"report: {error.code.name}: {error.message}"
                time.sleep(0.2)
        with self.lock:
            counted = failure is None
            self.counts.update({"reports": 1, "reports known": known, "reports again": tries > 1, "reports failed": not counted})
            self.counts.update({"reported": counted, "right": counted and answer.routed_task == task})
            if failure:
                self.failures[failure] += 1


class Proxy:
    """Passes TCP connections on to another port of the loopback, until it is closed."""

    def __init__(self):
        self.port, self.listener, self.sockets = free_port(), None, set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def open(self, target):
        self.target = target
        self.reopen()

    def reopen(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def close(self):
        listener, self.listener = self.listener, None
        if listener:
            # Wakes the thread that accepts; closing alone does not.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for each in list(self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept(self, listener):
        while True:
            try:
                inward, _ = listener.accept()
                outward = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                outward.settimeout(None)
            except OSError:
                return
            self.sockets |= {inward, outward}
            for pair in ((inward, outward), (outward, inward)):
                threading.Thread(target=self.copy, args=pair, daemon=True).start()

    def copy(self, source, sink):
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                sink.sendall(part)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        self.sockets.discard(source)


def status(entry):
    """The gRPC status of an attempt in nginx' log, as a number; "none" where no server has sent one."""
    return entry["grpc_trailer"].split(", ")[-1].strip("- ") or entry["grpc_header"].split(", ")[-1].strip("- ") or "none"


def ready(client):
    try:
        return client.health(timeout=2)
    except DeloError:
        return False


def opened(request):
    try:
        with urllib.request.urlopen(request, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def wait_for(what, seconds, holds, pause=0.2):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"{what}: waited {seconds} s in vain")
        time.sleep(pause)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resume(process):
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)


def end(process):
    """Ends a process that this run has started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
