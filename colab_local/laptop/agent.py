"""The far end of scripts/connect.py: finds, starts, watches and stops Jupyter on the host it runs on.

connect.py sends this module and those that it imports as one text through ssh's stdin to the host's Python (3.8 or
newer, standard library only; see far.py): nothing is installed there, and nothing of it remains when the line
closes. Requests come as one JSON object a line on stdin, answers go out as one JSON object a line on stdout, each
after MARK, since login scripts may print there too. Secrets travel on this line alone, never in an argument list.

Requests: {"op": "serve", ...}, see OPERATIONS and the functions of these names. Answers: {"ok": true, ...},
{"ok": false, "error": ..., "kind": ...}, and, any time,
{"note": "..."} for the user or {"event": "gone"} when the Jupyter that is being watched has ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import queue
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Iterator, NoReturn

from colab_local.base import documents
from colab_local.base.errors import Failure
from colab_local.base.files import lacks_inodes, private_file
from colab_local.base.network import free_port, listens, rivals, unix_listeners
from colab_local.install import home as homes
from colab_local.install.jupyter import TOKEN_FILE, jupyter_argv
from colab_local.install.servers import (
    Json,
    api,
    find_server,
    first_of,
    is_alive,
    living_servers,
    service_command,
    token_file,
)
from colab_local.laptop import installing

MARK = "colab-local>"
START_SECONDS = 180.0  # a cold start of Jupyter on a network file system
SILENT_SECONDS = 60.0  # how long a Jupyter may not answer: its machine may be busy, swapping, just awake
LOGS_KEPT = 5
FEWEST_FILES = 128  # a server and one kernel do with 48, each further kernel takes a dozen
UNSHARED_SECONDS = 60.0  # so long may a network file system take to show what another machine wrote
JOB_NAME = "colab-local"
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED")  # states of jobs that are not over
END_WORDS = {
    "COMPLETED": "it ended by itself",
    "FAILED": "it failed",
    "CANCELLED": "it was cancelled",
    "TIMEOUT": "its time was over",
    "DEADLINE": "its deadline was over",
    "OUT_OF_MEMORY": "it used more memory than it had asked for",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "PREEMPTED": "another job took its place",
}

# What it reads of the receipts of --service and --desktop.
SERVICE_SHAPE = {"env": str, "kind": "systemd|launchd"}
DESKTOPS_SHAPE = {"desktops": [{"port?": int, "listen?": "port|socket"}]}


class Refusal(Failure):
    """What went wrong; kind tells connect.py which hint to give: the laptop knows what can be typed there."""

    def __init__(self, error: str, kind: str = "") -> None:
        super().__init__(error, "")
        self.kind = kind


def send(message: Json) -> None:
    """Write one message to the laptop."""
    sys.stdout.write("\n" + MARK + json.dumps(message) + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------------------------------------------------
# What is installed


def home_folder(wanted: str | None) -> Path:
    """Return the folder that bootstrap.py installed into: the one named, else COLAB_LOCAL_HOME, else its default."""
    return Path(wanted or homes.default_home()).expanduser().resolve()


def choose(home: Path, env: str | None) -> Json:
    """Return the receipt of environment `env`, or of the one installed last; Refusal if there is none."""
    receipts = [receipt for receipt in homes.read_receipts(home) if homes.is_current(home, receipt)]
    if not receipts:
        kind = "absent-gpu" if shutil.which("nvidia-smi") else "absent"  # what there is to install
        raise Refusal(f"no colab-local environment on {socket.gethostname()} (looked in {home})", kind)
    for receipt in receipts:
        if env in (None, receipt["env"]):
            return receipt
    raise Refusal(
        "no environment {} on {} (found {} in {})".format(
            env, socket.gethostname(), ", ".join(r["env"] for r in receipts), home
        ),
        "env",
    )


def service_of(home: Path, env: str) -> Json | None:
    """Return the receipt of bootstrap.py --service if it serves this environment."""
    with contextlib.suppress(OSError, ValueError):
        receipt: Json = documents.read(home / "receipts" / "service.json", SERVICE_SHAPE)
        if receipt["env"] == env:
            return receipt
    return None


# ---------------------------------------------------------------------------------------------------------
# What runs


def silence(server: Json) -> Refusal:
    """Return what is said of a server that lives and does not answer."""
    what = "Jupyter on {} (process {pid}, port {port}) runs and does not answer"
    return Refusal(what.format(socket.gethostname(), **server), "silent")


# ---------------------------------------------------------------------------------------------------------
# Starting and stopping


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Let two laptops that connect at once not start two servers."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # file systems without locks, a disk that is full: do without
            run = home / "run"
            run.mkdir(exist_ok=True)
            fcntl.flock(held.enter_context((run / "connect.lock").open("w")), fcntl.LOCK_EX)
        yield


def clean_environment(**extra: str) -> dict[str, str]:
    """Return os.environ without what misleads another Python or Jupyter, plus `extra`."""
    misleading = re.compile(r"PYTHON|CONDA|MAMBA|PIXI|VIRTUAL_ENV|JUPYTER_(TOKEN|CONFIG|PATH)|IPYTHON|LD_|DYLD_")
    kept = {name: value for name, value in os.environ.items() if not misleading.match(name)}
    kept.update(extra)
    return kept


def starting_environment(token: Path) -> dict[str, str]:
    """Return the environment that Jupyter is started in: it drops by itself what would mislead it.

    The libraries' path of the log-in was kept aside while this program started (ssh.py): the driver may be in it.
    """
    environ = dict(os.environ, **{TOKEN_FILE: str(token)})
    libraries = environ.pop("COLAB_LOCAL_LIBRARIES", "")
    return dict(environ, LD_LIBRARY_PATH=libraries) if libraries else environ


def open_log(home: Path) -> Path:
    """Return the path of a new log file that its user alone can read; drop the oldest ones."""
    folder = home / "logs"
    folder.mkdir(exist_ok=True)
    for old in sorted(folder.glob("jupyter-*.log"))[: -LOGS_KEPT + 1]:
        old.unlink()
    path = folder / time.strftime(f"jupyter-%Y%m%d-%H%M%S-{os.getpid()}.log")
    os.close(private_file(path))
    return path


def last_lines(path: Path, count: int = 8) -> str:
    """Return the end of a log, indented; nothing if there is none."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "".join("  " + line + "\n" for line in lines[-count:])
    return ""


def launch(home: Path, receipt: Json, wanted: int | None) -> Json:
    """Start Jupyter as a process that outlives this line, wait until it answers and return it."""
    preferred = wanted or int(receipt["port"])
    port = free_port(preferred)
    if port != preferred:
        send({"note": f"port {preferred} is taken on {socket.gethostname()}: Jupyter uses {port} there"})
    send({"note": f"starting Jupyter on {socket.gethostname()}"})
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < FEWEST_FILES:
        limit = f"only {most} files can be open at a time on {socket.gethostname()}"
        send({"note": f"{limit} (ulimit -n in a start-up file?): kernels may not start"})
    log = open_log(home)
    with log.open("ab") as output:
        child = subprocess.Popen(
            jupyter_argv(
                str(home / "current" / receipt["env"]),
                port,
                receipt["notebook_dir"],
                os.geteuid() == 0,
                bool(receipt.get("lab")),
            ),
            env=starting_environment(token_file(home)),
            cwd=str(home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # no terminal, no signal of this line reaches it
        )
    return await_server(home, receipt["env"], child.pid, log)


def await_server(home: Path, env: str, pid: int | None, log: Path | None = None) -> Json:
    """Poll until the server (the process `pid`, if given) answers; Refusal if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        server = find_server(home, env, pid)
        if server:
            return dict(server, log=str(log or ""))
        if pid and not is_alive(pid):
            end = last_lines(log) if log else ""
            raise Refusal(f"Jupyter ended at once on {socket.gethostname()}\n{end}", "start")
        time.sleep(0.1)
    raise Refusal("Jupyter did not answer within {:.0f} s (log: {})".format(START_SECONDS, log or "none"), "start")


def await_silent(home: Path, env: str | None) -> Json | None:
    """Wait for a server that lives and does not answer; None if there is none, Refusal if it stays silent.

    Starting another one beside it would look like a new start to the user: the variables are in this one.
    """
    silent = first_of(living_servers(home), env)
    if silent is None:
        return None
    send({"note": f"{silence(silent)}: waiting"})
    deadline = time.monotonic() + SILENT_SECONDS
    while is_alive(silent["pid"]):
        server = find_server(home, env, silent["pid"])
        if server:
            return server
        if time.monotonic() > deadline:
            raise silence(silent)
        time.sleep(0.1)
    return None


def control_service(service: Json, action: str) -> None:
    """Start or stop the service that bootstrap.py --service made; the command is ours, not the receipt's."""
    command = service_command(service["kind"], action)
    environ = clean_environment()
    environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")  # systemctl --user needs it
    done = subprocess.run(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()
        raise Refusal("could not {} the service ({}): {}".format(action, " ".join(command), said), "start")


def program(request: Json) -> Json:
    """Say whether this very program is here; put it here first if it comes along.

    digest: of its archive; archive: a tar.gz in base64.
    """
    home = home_folder(request.get("home"))
    if request.get("archive"):
        installing.unpack_program(home, request["archive"], request["digest"])
    return {"there": installing.has_program(home, request["digest"])}


def install(request: Json) -> Json:
    """Install with the program that is here, and show what it says; see installing.py."""
    home = home_folder(request.get("home"))
    with only_one(home):
        state, offset = installing.begin(home, request, is_alive)
    return installing.follow(home, state, offset, send, is_alive)


def serve(request: Json) -> Json:
    """Return the server to connect to: one that runs, else a new one.

    home: where colab-local is; env: which environment, None for any; port: what Jupyter should listen on if it
    has to be started; pid: wait for this very process instead of starting one (a Slurm job).
    """
    home = home_folder(request.get("home"))
    receipt = choose(home, request.get("env"))
    if request.get("pid"):
        return dict(describe(await_server(home, receipt["env"], request["pid"]), home, receipt), started=False)
    with only_one(home):
        server = find_server(home, request.get("env")) or await_silent(home, request.get("env"))
        started = server is None
        if server is None:
            service = service_of(home, receipt["env"])
            if service and not request.get("port"):
                control_service(service, "start")
                server = await_server(home, receipt["env"], None)
            else:
                server = launch(home, receipt, request.get("port"))
    return dict(describe(server, home, receipt), started=started)


def describe(server: Json, home: Path, receipt: Json) -> Json:
    """Add what the user wants to know about the host.

    current: false for an environment since replaced; alone: no stranger has the other of localhost's addresses.
    """
    return dict(
        server,
        running=True,
        home=str(home),
        host=socket.gethostname(),
        user=getpass.getuser(),
        env=server["name"].rpartition("-")[0],
        current=Path(receipt["root"]).name == server["name"],
        alone=rivals(server["port"]) is None,
    )


def status(request: Json) -> Json:
    """Say whether a server runs, and which; nothing is started."""
    home = home_folder(request.get("home"))
    receipt = choose(home, request.get("env"))
    server = find_server(home, request.get("env"))
    silent = None if server else first_of(living_servers(home), request.get("env"))
    if silent:
        raise silence(silent)
    return describe(server, home, receipt) if server else {"running": False, "host": socket.gethostname()}


def stop(request: Json) -> Json:
    """Stop the server, kernels first; by Jupyter's own API, by signals if that doesn't help."""
    home = home_folder(request.get("home"))
    choose(home, request.get("env"))
    with only_one(home):
        answering = find_server(home, request.get("env"))
        server = answering or first_of(living_servers(home), request.get("env"))
        if server is None:
            return {"stopped": False, "host": socket.gethostname(), "kernels": 0}
        service = service_of(home, server["name"].rpartition("-")[0])
        if service:  # first: it would start Jupyter again
            control_service(service, "stop")
        if answering:
            with contextlib.suppress(OSError, ValueError):
                api(server["port"], server["token"], "POST", server["base_url"] + "api/shutdown", timeout=30)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if gone_within(server["pid"], 15 if answering else 3):
                break
            os.kill(server["pid"], number)
        gone_within(server["pid"], 15)
    kernels = server.get("kernels")  # of one that does not answer nobody knows
    return {"stopped": True, "host": socket.gethostname(), "pid": server["pid"], "kernels": kernels}


def gone_within(pid: int, seconds: float) -> bool:
    """Whether a process ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not is_alive(pid)


def desktops(request: Json) -> Json:
    """Name the ports and sockets of the remote desktops that bootstrap.py made, else `ports`; say which listen."""
    found: list[int | Path] = []
    with contextlib.suppress(OSError, ValueError):
        path = home_folder(request["home"]) / "receipts" / "desktop.json"
        for entry in documents.read(path, DESKTOPS_SHAPE)["desktops"]:
            port = entry.get("port", 0)
            if entry.get("listen") == "socket":
                found.append(homes.desktop_socket(homes.user_home().resolve(), port - 5900))
            elif 0 < port < 1 << 16:
                found.append(port)
    places = found or request["ports"]
    return {"places": {str(p): bool(unix_listeners(p)) if isinstance(p, Path) else listens(p) for p in places}}


# ---------------------------------------------------------------------------------------------------------
# Slurm, on a login node


def slurm(argv: list[str], input: str = "", environ: dict[str, str] | None = None) -> str:
    """Run a Slurm command and return what it printed; Refusal with its own words if it fails."""
    try:
        done = subprocess.run(
            argv,
            input=input.encode(),
            env=environ,
            capture_output=True,
            timeout=60,
        )
    except FileNotFoundError:
        raise Refusal(f"no Slurm on {socket.gethostname()} (no command {argv[0]})", "slurm") from None
    except subprocess.TimeoutExpired:
        raise Refusal(f"{argv[0]} did not answer within 60 s", "slurm") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").replace(f"{argv[0]}: error: ", "").split("\n")
        said = "; ".join(filter(None, map(str.strip, words)))
        kind = "account" if re.search(r"\b(account|association|qos)", said, re.I) else "slurm"
        raise Refusal(f"{argv[0]}: {said}", kind)
    return done.stdout.decode(errors="replace")


def own_queue() -> list[Json]:
    """Return this user's jobs that wait or run, the newest first.

    job: the number that sbatch printed, of the whole array if it is one; task: this one's number; ends_in: seconds
    until its time is over, None where it has no end yet; start: when it started or, waiting, is expected to.
    """
    found = []
    for line in slurm(["squeue", "-h", "-u", getpass.getuser(), "-o", "%F|%A|%T|%N|%r|%S|%e|%j"]).splitlines():
        fields = line.strip().split("|", 7)
        if len(fields) != 8 or fields[2] not in ALIVE:
            continue
        names = ("job", "task", "state", "node", "reason", "start")
        found.append(dict(zip(names, fields), ends_in=seconds_until(fields[6]), name=fields[7]))
    return sorted(found, key=lambda job: (job["state"] == "RUNNING", int(job["task"])), reverse=True)


def seconds_until(moment: str) -> int | None:
    """Return the seconds until a moment as Slurm prints it (2026-11-25T12:00:00), None for N/A and the like."""
    with contextlib.suppress(ValueError):
        return int(time.mktime(time.strptime(moment, "%Y-%m-%dT%H:%M:%S")) - time.time())
    return None


def job_record(home: Path, number: str) -> Path:
    """Return the file that says which process serves a job; the batch script writes it when it starts."""
    return home / "run" / f"slurm-{number}.json"


def drop_records(home: Path, queue: list[Json]) -> None:
    """Remove the records of jobs that are no more."""
    alive = {job["job"] for job in queue} | {job["task"] for job in queue}
    for path in (home / "run").glob("slurm-*.json"):
        if path.stem.partition("-")[2] not in alive:
            with contextlib.suppress(OSError):
                path.unlink()


def find_job(home: Path, number: str | None) -> Json | None:
    """Return the job of a number, or the newest of colab-local that is not over; None if there is none.

    It is ours if it has a record, whatever it is called (--job-name), or our name: submitted by hand, and waiting.
    """
    queue = own_queue()
    drop_records(home, queue)
    for job in queue:
        numbers = {job["job"], job["task"]}
        ours = job["name"] == JOB_NAME or any(job_record(home, one).exists() for one in numbers)
        if number in numbers or (number is None and ours):
            return job
    return None


def state_of(number: str) -> tuple[str, str, str]:
    """Return a job's state, exit code and reason, empty where Slurm does not know it.

    scontrol remembers a job for some minutes (MinJobAge), accounting for longer, where a site has it.
    """
    with contextlib.suppress(Refusal):
        fields = dict(word.partition("=")[::2] for word in slurm(["scontrol", "-o", "show", "job", number]).split())
        if fields.get("JobState"):
            return fields["JobState"], fields.get("ExitCode", ""), fields.get("Reason", "")
    with contextlib.suppress(Refusal):
        said = slurm(["sacct", "-n", "-X", "-P", "-j", number, "-o", "State,ExitCode"]).partition("\n")[0].strip()
        return said.partition("|")[0], said.partition("|")[2], ""
    return "", "", ""


def end_of(number: str) -> str:
    """Return how a job ended, in words: its state as Slurm knows it, and its exit code where that says something."""
    deadline = time.monotonic() + 15.0
    state, code, reason = state_of(number)
    while state in (*ALIVE, "COMPLETING") and time.monotonic() < deadline:
        time.sleep(0.5)
        state, code, reason = state_of(number)
    if not state:
        return "it is no longer known to Slurm"
    words = END_WORDS.get(state.split()[0], state.lower().replace("_", " "))
    more = [f"exit code {code}"] if code not in ("", "0:0") else []
    more += [reason] if reason not in ("", "None", "NonZeroExitCode", "TimeLimit") else []
    return words + (f" ({', '.join(more)})" if more else "")


def submit(request: Json) -> Json:
    """Return the running Slurm job that serves Jupyter: the one in the queue, else a new one.

    script: the batch script; options: sbatch's own; job: wait for this job, don't submit another. It waits as
    long as the queue takes: connect.py's user may end it, the job stays.
    """
    home = home_folder(request.get("home"))
    receipt = choose(home, request.get("env"))
    job = find_job(home, request.get("job"))
    submitted = job is None
    if job is None:
        if request.get("job"):
            raise Refusal("Slurm job {} has ended: {}".format(request["job"], end_of(request["job"])), "job")
        job = {"job": new_job(home, receipt["env"], request)}
    shown, ran_since = "", 0.0
    log = home / "logs" / "slurm-{}.log".format(job["job"])
    while True:
        found = find_job(home, job["job"])
        if found is None:
            raise ended_early(home, job["job"], log)
        record = job_record(home, found["task"])
        if found["state"] == "RUNNING":
            with contextlib.suppress(OSError, ValueError):
                pid = documents.read(record, {"pid": int})["pid"]
                return dict(found, submitted=submitted, log=str(log), pid=pid)
            ran_since = ran_since or time.monotonic()
            ran = time.monotonic() - ran_since
            if ran > UNSHARED_SECONDS and not log.exists():
                raise unshared(home, found["job"], found["node"])
            if ran > START_SECONDS:
                what = "Slurm job {job} runs on {node}, but Jupyter does not start (its words: {log})"
                raise Refusal(what.format(log=log, **found), "job")
        state = told_state(found)
        if state != shown:
            send({"note": "Slurm job {}: {}".format(found["job"], state), "job": found["job"]})
            shown = state
        time.sleep(1.0)


def new_job(home: Path, env: str, request: Json) -> str:
    """Submit a job and return its number; a record of it is left, so that it is known by its number from now on."""
    for folder in ("logs", "run"):
        (home / folder).mkdir(exist_ok=True)
    # %A is the number that sbatch prints; in an array that is the whole's, and its tasks write one after the other
    output = "--output={}".format(home / "logs" / "slurm-%A.log")
    said = slurm(
        ["sbatch", "--parsable", output, *request.get("options", [])],
        input=request["script"],
        environ=clean_environment(COLAB_LOCAL_HOME=str(home), COLAB_LOCAL_ENV=env),
    )
    number = said.strip().splitlines()[-1].split(";")[0] if said.strip() else ""
    if not number.isdigit():
        raise Refusal(f"sbatch printed no job's number ({said.strip()[:200]!r})", "slurm")
    record = job_record(home, number)
    if not record.exists():
        with contextlib.suppress(OSError):
            record.write_text("{}", encoding="utf-8")
    send({"note": f"submitted Slurm job {number}", "job": number})
    return number


def told_state(job: Json) -> str:
    """Return a job's state as the user is told of it."""
    if job["state"] == "PENDING":
        expected = job["start"] if job["start"][:1].isdigit() else ""
        return "pending ({})".format(job["reason"]) + (f", expected to start at {expected}" if expected else "")
    return str(job["state"]).lower()


def unshared(home: Path, number: str, node: str) -> Refusal:
    """Return what is said where the compute node writes its files elsewhere than this login node reads them."""
    where = f" ({node})" if node else ""
    return Refusal(
        f"Slurm job {number} wrote nothing into {home}: the compute node{where} and {socket.gethostname()} do not "
        "share this folder",
        "home",
    )


def ended_early(home: Path, number: str, log: Path) -> Refusal:
    """Return what is said of a job that is over before Jupyter was up."""
    deadline = time.monotonic() + 5.0  # a network file system shows another machine's file with delay
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    how = end_of(number)
    if not log.exists() and how.startswith(END_WORDS["FAILED"]):
        return unshared(home, number, "")
    return Refusal(f"Slurm job {number} ended before Jupyter ran: {how}\n{last_lines(log)}", "job")


def job(request: Json) -> Json:
    """Say which job is in the queue; nothing is submitted."""
    return {"job": find_job(home_folder(request.get("home")), request.get("job"))}


def ended(request: Json) -> Json:
    """Say how a job ended; Slurm may need some seconds to notice."""
    how = end_of(request["job"])
    drop_records(home_folder(request.get("home")), own_queue())
    return {"how": how}


def cancel(request: Json) -> Json:
    """Cancel the job in the queue, by its number."""
    home = home_folder(request.get("home"))
    found = find_job(home, request.get("job"))
    if found:
        slurm(["scancel", found["job"]])
        for number in (found["job"], found["task"]):
            with contextlib.suppress(OSError):
                job_record(home, number).unlink()
    return {"stopped": bool(found), "host": socket.gethostname(), "job": found and found["job"]}


# ---------------------------------------------------------------------------------------------------------

OPERATIONS = {
    function.__name__: function
    for function in (program, install, serve, status, stop, desktops, submit, job, ended, cancel)
}


def answer(line: str) -> Json:
    """Carry out one request and return the message that answers it."""
    request = json.loads(line)
    try:
        return dict(OPERATIONS[request["op"]](request), ok=True)
    except Failure as refusal:
        return {"ok": False, "error": refusal.what.rstrip(), "kind": getattr(refusal, "kind", "")}
    except OSError as problem:
        home = home_folder(request.get("home"))
        where = problem.filename or home
        kinds = {errno.EACCES: "denied", errno.EPERM: "denied", errno.EROFS: "denied"}
        kinds.update(dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "inodes" if lacks_inodes(home) else "disk"))
        what = f"{problem.strerror or problem} on {socket.gethostname()} ({where})"
        return {"ok": False, "error": what, "kind": kinds.get(problem.errno or 0, "")}


def listen(lines: queue.Queue[str]) -> NoReturn:
    """Read requests; end this process when the line closes, whatever it does at that moment."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Answer requests until the line closes."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=listen, args=(lines,), daemon=True).start()
    send({"ok": True, "hello": socket.gethostname(), "python": "{}.{}".format(*sys.version_info[:2])})
    watched = 0
    while True:
        try:
            message = answer(lines.get(timeout=1.0))
            watched = message.get("pid", watched) if message.get("running") else watched
            send(message)
        except queue.Empty:
            if watched and not is_alive(watched):
                send({"event": "gone"})
                watched = 0


if __name__ == "__main__":
    main()
