"""connect.py --slurm against real Slurm daemons: a login node, a compute node behind it, one home for both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Installed
from tests.support.colab_client import TRANSPORTS, connect
from tests.support.connecting import QUICK, install, run, running
from tests.support.hosts import Lab, Machine, needs_root, wait_for

pytestmark = needs_root

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=login
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
ReturnToService=2
SlurmctldPort=6817
SlurmdPort=6818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SchedulerParameters=sched_interval=1,sched_min_interval=0
KillWait=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=login
AccountingStorageEnforce=associations
NodeName=node CPUs={cpus} State=UNKNOWN
NodeName=island CPUs=1 State=UNKNOWN
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
PartitionName=far Nodes=island MaxTime=INFINITE State=UP
"""

# As on most sites: who may submit, and on which account, is in a database.
SLURMDBD_CONF = """\
AuthType=auth/munge
DbdHost=login
SlurmUser=root
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""
ACCOUNT = "physics"


class Cluster:
    """The lab's machines that matter, and how to talk to Slurm on them."""

    def __init__(self, lab: Lab, folder: Path, home: Path) -> None:
        self.lab = lab
        self.home = home
        self.folder = folder
        self.environment = [f"SLURM_CONF={folder}/slurm.conf"]
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self, machine: Machine, *argv: str) -> None:
        """Run a daemon in the foreground on a machine, its words in a log."""
        log = (self.folder / f"{machine.name}-{Path(argv[0]).name}.out").open("wb")
        with log:
            self.daemons.append(
                subprocess.Popen(
                    machine.enter(["env", *self.environment, *argv]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def slurm(self, *argv: str, on: str = "login") -> str:
        """Run one of Slurm's commands."""
        done = self.lab.machines[on].run(["env", *self.environment, *argv], check=False)
        return done.stdout + done.stderr

    def keep_accounts(self) -> None:
        """Start slurmdbd and its database on the login node; nothing of the database is on a network."""
        login, data = self.lab.machines["login"], self.folder / "database"
        options = ["--no-defaults", "--user=root", f"--datadir={data}"]
        login.run(["mariadb-install-db", *options, "--auth-root-authentication-method=socket", "--skip-test-db"])
        login.run(["mkdir", "-p", "/run/mysqld"])  # where slurmdbd looks for its socket; /run is the machine's own
        database_socket = "/run/mysqld/mysqld.sock"
        self.start(
            login, "mariadbd", *options, "--skip-networking", f"--socket={database_socket}", f"--pid-file={data}/pid"
        )
        wait_for(lambda: login.run(["test", "-S", database_socket], check=False).returncode == 0, 120, "the database")
        settings = self.folder / "slurmdbd.conf"
        settings.write_text(SLURMDBD_CONF.format(folder=self.folder))
        settings.chmod(0o600)
        self.start(login, "slurmdbd", "-D")
        wait_for(lambda: "lab" in self.slurm("sacctmgr", "-i", "add", "cluster", "lab"), 120, "slurmdbd")
        self.slurm("sacctmgr", "-i", "add", "account", ACCOUNT, "Cluster=lab")
        self.slurm("sacctmgr", "-i", "add", "user", "root", f"Account={ACCOUNT}", "Cluster=lab")

    def logs(self) -> str:
        """Return what the daemons have written."""
        return "\n".join(f"--- {log}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.[lo]*")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, installed: Installed) -> Iterator[Cluster]:
    base = tmp_path_factory.mktemp("slurm")
    folder, home = base / "cluster", base / "shared-home"
    (folder / "state").mkdir(parents=True)
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, cpus=os.cpu_count()))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with Lab(base / "lab") as lab:
        # Commands given through ssh find Slurm as on a site that sets SLURM_CONF for everybody.
        options = f"SetEnv SLURM_CONF={folder}/slurm.conf"
        login = lab.host("login", networks=("outer", "inner"), home=home, sshd_options=options)
        node = lab.host("node", networks=("inner",), home=home, sshd_options=options)
        island = lab.host("island", networks=("inner",), home=home, sshd_options=options)
        install(installed, login)
        made = Cluster(lab, folder, home)
        munge = ("--foreground", "--force", f"--key-file={key}", "--num-threads=2")
        for machine in (login, node, island):
            machine.run(["mkdir", "-p", "-m", "755", "/run/munge"])  # /run is each machine's own
            own = folder / f"munge-{machine.name}"
            files = (f"--{name}-file={own}.{name}" for name in ("log", "pid", "seed"))
            made.start(machine, "munged", *munge, *files, "--socket=/run/munge/munge.socket.2")
        for machine in (login, node, island):
            wait_for(
                lambda machine=machine: (
                    machine.run(["test", "-S", "/run/munge/munge.socket.2"], check=False).returncode == 0
                ),  # type: ignore[misc]
                60,
                "munged",
            )
        made.keep_accounts()
        made.start(login, "slurmctld", "-D")
        made.start(node, "slurmd", "-D", "-N", "node")
        made.start(island, "slurmd", "-D", "-N", "island")
        try:
            wait_for(
                lambda: made.slurm("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2,
                120,
                "slurmd at slurmctld",
            )
        except AssertionError as problem:
            raise AssertionError(f"{problem}\n{made.logs()}") from None
        yield made


def jobs(cluster: Cluster) -> str:
    return cluster.slurm("squeue", "-h", "-o", "%i %j %T %N %M").strip()


def test_jupyter_on_a_compute_node_behind_a_login_node(cluster: Cluster) -> None:
    lab = cluster.lab
    slurm = ("--slurm", "--sbatch=--time=30 --cpus-per-task=1", *QUICK, "login")
    with running(lab, *slurm) as link:
        one = link.event("connected")
        assert one["host"] == "node", cluster.logs()
        link.says("Slurm job {job} runs on node".format(**one))
        with lab.laptop.network():
            for transport in TRANSPORTS:
                with connect(one["url"], transport) as colab:
                    code = "import os, socket; print(socket.gethostname(), os.environ['SLURM_JOB_ID'])"
                    assert colab.run(code).stdout == f"node {one['job']}\n"
        assert not lab.machines["login"].listens(one["remote_port"]), "nothing of it runs on the login node"

        # The way to it is cut and comes back: the same job.
        lab.machines["login"].cut()
        try:
            link.event("dropped")
        finally:
            lab.machines["login"].restore()
        link.event("reconnected")
        assert link.end() == 0
    link.says("still runs")
    link.says("--stop --slurm")

    # Attached to, not submitted again; the token is in no list of jobs or arguments.
    assert jobs(cluster).startswith(f"{one['job']} colab-local RUNNING node")
    with running(lab, *slurm) as link:
        two = link.event("connected")
        assert (two["job"], two["pid"], two["url"]) == (one["job"], one["pid"], one["url"])
        token = one["url"].partition("token=")[2]
        assert token not in cluster.slurm("scontrol", "show", "job", one["job"])
        assert token not in (cluster.home / f".local/share/colab-local/logs/slurm-{one['job']}.log").read_text()
        assert link.end() == 0

    status = run(lab, "--status", "--slurm", "login")
    assert status.stdout == f"Slurm job {one['job']}: RUNNING node\n"
    assert run(lab, "--stop", "--slurm", "login").stdout == "stopped on login\n"
    wait_for(lambda: jobs(cluster) == "", 60, "the job's end")
    assert not lab.machines["node"].listens(one["remote_port"])
    assert run(lab, "--stop", "--slurm", "login").stdout == "nothing to stop on login\n"


def test_a_queue_is_waited_in_and_left_by_ctrl_c(cluster: Cluster) -> None:
    lab = cluster.lab
    blocker = cluster.slurm("sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--wrap=sleep 600").strip()
    wait_for(lambda: "RUNNING" in jobs(cluster), 60, "the job that is in the way")
    try:
        with running(lab, "--slurm", *QUICK, "login") as link:
            link.says("pending (", 60)
            assert link.end() == 0
            link.says("ended; Slurm job")
        assert "PENDING" in jobs(cluster), "it keeps its place"
        with running(lab, "--slurm", *QUICK, "login") as link:
            link.says("pending (", 60)
            assert "submitted" not in link.said
            cluster.slurm("scancel", blocker)
            job = link.event("connected")["job"]
            cluster.slurm("scancel", job)
            ended = link.event("failed")
            assert ended["error"] == f"Jupyter on node has ended (Slurm job {job})"
            assert "--slurm" in ended["hint"]
            assert link.process.wait(60) == 1
    finally:
        cluster.slurm("scancel", "-u", "root")


def records(cluster: Cluster) -> set[str]:
    return {path.name for path in (cluster.home / ".local/share/colab-local/run").glob("slurm-*.json")}


@pytest.mark.parametrize("options", ["--job-name=mine", "--array=0-0", "--array=0-1%1 --job-name=many"])
def test_a_job_is_known_by_its_number_and_not_by_its_name(cluster: Cluster, options: str) -> None:
    """Followed, found again, shown and stopped, whatever it is called; an array is one job to the user."""
    lab = cluster.lab
    slurm = ("--slurm", f"--sbatch=--time=30 {options}", *QUICK, "login")
    with running(lab, *slurm) as link:
        one = link.event("connected")
        assert link.end() == 0
    assert one["job"] in jobs(cluster)
    assert "RUNNING node" in run(lab, "--status", "--slurm", "login").stdout
    with running(lab, "--slurm", *QUICK, "login") as link:
        two = link.event("connected")
        assert (two["job"], two["pid"]) == (one["job"], one["pid"])
        assert "submitted" not in link.said
        assert link.end() == 0
    assert run(lab, "--stop", "--slurm", "login").stdout == "stopped on login\n"
    wait_for(lambda: jobs(cluster) == "", 60, "the end of all that was submitted")
    assert run(lab, "--stop", "--slurm", "login").stdout == "nothing to stop on login\n"
    assert not records(cluster), "no record of a job that is over"


def test_a_stranger_to_us_is_not_stopped(cluster: Cluster) -> None:
    """Another job of the same user is none of ours."""
    other = cluster.slurm("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600").strip()
    try:
        assert run(cluster.lab, "--stop", "--slurm", "login").stdout == "nothing to stop on login\n"
        assert other in jobs(cluster)
    finally:
        cluster.slurm("scancel", other)


def test_the_end_is_announced_and_explained(cluster: Cluster) -> None:
    """A job of two minutes: its end is said at the start, warned of (less than ten minutes are left), explained."""
    with running(cluster.lab, "--slurm", "--sbatch=--time=2", *QUICK, "login") as link:
        job = link.event("connected")["job"]
        link.says(f"Slurm job {job} runs on node, until ")
        link.says(f"note: Slurm ends job {job} in ")
        cluster.slurm("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        assert link.event("ending")["job"] == job
        assert link.event("failed")["error"] == f"Jupyter on node has ended (Slurm job {job})"
        assert f"Slurm job {job} has ended: its time was over" in link.said, link.said
        assert link.process.wait(60) == 1


def test_a_waiting_job_says_when_it_is_expected_to_start(cluster: Cluster) -> None:
    blocker = cluster.slurm(
        "sbatch", "--parsable", "--exclusive", "--time=5", "--output=/dev/null", "--wrap=sleep 600"
    ).strip()
    wait_for(lambda: "RUNNING" in jobs(cluster), 60, "the job that is in the way")
    try:
        with running(cluster.lab, "--slurm", "--sbatch=--time=1", *QUICK, "login") as link:
            link.says("expected to start at 20", 120)
            assert link.end() == 0
    finally:
        cluster.slurm("scancel", blocker)
        cluster.slurm("scancel", "-u", "root")


def test_a_home_that_is_not_shared_is_named(cluster: Cluster) -> None:
    cluster.lab.machines["island"].run(["mount", "-t", "tmpfs", "tmpfs", str(cluster.home)])
    done = run(cluster.lab, "--slurm", "--sbatch=--partition=far", "login")
    assert done.returncode == 1
    assert f"wrote nothing into {cluster.home}/.local/share/colab-local: the compute node" in done.stderr
    assert "do not share this folder" in done.stderr
    assert "hint: ssh login python3 colab-local/bootstrap.py --prefix DIR   # DIR: on a shared disk" in done.stderr
    assert not records(cluster)


def test_what_slurm_refuses_is_shown_in_its_own_words(cluster: Cluster) -> None:
    done = run(cluster.lab, "--slurm", "--sbatch=--partition=moon", "login")
    assert done.returncode == 1
    assert "invalid partition specified: moon" in done.stderr
    assert "hint: ssh login sinfo" in done.stderr


def test_an_account_that_is_refused_is_said_in_one_line_with_a_true_hint(cluster: Cluster) -> None:
    done = run(cluster.lab, "--slurm", "--sbatch=--account=nosuch", "login")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: sbatch: ")
    assert "Invalid account or account/partition combination specified" in error
    told = cluster.lab.laptop.run(["sh", "-c", hint.removeprefix("hint: ")]).stdout
    assert ACCOUNT in told, "the hint, typed, shows the accounts that are yours"
    assert jobs(cluster) == "" and not records(cluster)


def test_no_slurm_there(cluster: Cluster, installed: Installed) -> None:
    plain = cluster.lab.host("plain", sshd_options="SetEnv PATH=/nowhere:/bin/nothing")
    install(installed, plain)
    (plain.home / ".bashrc").write_text(f"PATH={plain.home}/bin\n")
    (plain.home / "bin").mkdir()
    for name in ("sh", "env", "python3"):  # without env, a PATH is taken for a broken one
        (plain.home / "bin" / name).symlink_to(Path("/usr/bin") / name)
    done = run(cluster.lab, "--slurm", "plain")
    assert done.returncode == 1
    assert "error: no Slurm on plain (no command squeue)" in done.stderr
