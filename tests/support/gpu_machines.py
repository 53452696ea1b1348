"""Machines with GPUs that the one under test does not have: nvidia-smi and libcuda.so.1 that answer as real ones did.

nvidia_smi/*.txt: one real or reported answer each, with its source and the decision that is right for it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

CASES = Path(__file__).with_name("nvidia_smi")
BYTES = bytes(range(128, 256)).replace(b"\x00", b"") + b"\n"

# What cuda.h says of the functions that are asked, with answers from the environment: FAKE_STATUS is cuInit's,
# FAKE_DEVICES "name|major|minor|MiB|free MiB|context;...", FAKE_CUDA the driver's, FAKE_PTX cuModuleLoadData's answer
# to PTX that is newer than FAKE_CUDA (222, as real drivers), FAKE_HANG the function that never comes back.
# CUDA_VISIBLE_DEVICES is obeyed as the CUDA C++ Programming Guide says: up to the first entry that is no device.
LIBCUDA = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const char *env(const char *name, const char *other) { const char *v = getenv(name); return v ? v : other; }
static void here(const char *function) {
    if (!strcmp(env("FAKE_HANG", ""), function)) for (;;) sleep(60);
    if (!strcmp(env("FAKE_CRASH", ""), function)) abort();
}
static char rows[16][256]; static int count;
static void load(void) {
    char text[4096], *save, *row; char all[16][256]; int n = 0;
    snprintf(text, sizeof text, "%s", env("FAKE_DEVICES", ""));
    for (row = strtok_r(text, ";", &save); row && n < 16; row = strtok_r(0, ";", &save)) strcpy(all[n++], row);
    count = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) { for (count = 0; count < n; count++) strcpy(rows[count], all[count]); return; }
    char list[256]; snprintf(list, sizeof list, "%s", visible);
    for (row = strtok_r(list, ",", &save); row; row = strtok_r(0, ",", &save)) {
        char *end; long number = strtol(row, &end, 10);
        if (!strncmp(row, "GPU-0", 5)) number = atoi(row + 5), end = "";
        if (*end || number < 0 || number >= n) break;
        strcpy(rows[count++], all[number]);
    }
}
static void field(int device, int which, char *out) {
    const char *p = rows[device]; int i;
    for (i = 0; i < which && p; i++) { p = strchr(p, '|'); if (p) p++; }
    if (!p) { strcpy(out, "0"); return; }
    size_t n = strcspn(p, "|"); memcpy(out, p, n); out[n] = 0;
}
static int number(int device, int which) { char out[256]; field(device, which, out); return atoi(out); }
static int current;
int cuDriverGetVersion(int *v) { here("cuDriverGetVersion"); *v = atoi(env("FAKE_CUDA", "12080")); return 0; }
int cuInit(unsigned f) {
    here("cuInit"); load();
    int s = atoi(env("FAKE_STATUS", "0")); return s ? s : count ? 0 : 100;
}
int cuGetErrorName(int s, const char **t) {
    *t = s == 100 ? "CUDA_ERROR_NO_DEVICE" : s == 802 ? "CUDA_ERROR_SYSTEM_NOT_READY" :
         s == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : s == 999 ? "CUDA_ERROR_UNKNOWN" : "CUDA_ERROR";
    return 0;
}
int cuDeviceGetCount(int *n) { here("cuDeviceGetCount"); *n = count; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *t, int n, int d) { char out[256]; field(d, 0, out); snprintf(t, n, "%s", out); return 0; }
int cuDeviceGetAttribute(int *v, int which, int d) {
    *v = number(d, which == 75 ? 1 : which == 76 ? 2 : 99); return 0;
}
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)number(d, 3) << 20; return 0; }
int cuDeviceGetUuid(unsigned char *u, int d) { memset(u, 0, 16); u[15] = d + 1; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) {
    here("cuDevicePrimaryCtxRetain"); current = d; *c = rows; return number(d, 5);
}
int cuCtxSetCurrent(void *c) { return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) {
    *f = (size_t)number(current, 4) << 20; *t = (size_t)number(current, 3) << 20; return 0;
}
int cuModuleLoadData(void **m, const char *ptx) {
    double version = 0; sscanf(ptx, ".version %lf", &version);
    int cuda = atoi(env("FAKE_CUDA", "12080")), reads = cuda / 1000 * 10 + cuda % 1000 / 10 - 40;  /* 12.5: PTX 8.5 */
    return version * 10 > reads + 0.5 ? 222 : 0;
}
"""


@dataclass(frozen=True)
class Case:
    """One recorded answer: right is accept, accept+note or refuse; behave: print, absent, notexec, bytes, hang."""

    name: str
    machine: str
    status: int
    behave: str
    environment: dict[str, str]
    right: str
    answers: dict[str, str]


def read_case(path: Path) -> Case:
    """Return a recorded answer."""
    head, answers, fields = {}, {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not fields:
            key, _, value = line[2:].partition(": ")
            head[key] = value
        elif line.startswith("== "):
            fields = line[3:]
            answers[fields] = ""
        else:
            answers[fields] += line + "\n"
    variable, equals, value = head["env"].partition("=")
    environment = {variable: value} if equals else {}
    return Case(path.stem, head["machine"], int(head["exit"]), head["behave"], environment, head["right"], answers)


def cases() -> list[Case]:
    """Return all recorded answers."""
    return [read_case(path) for path in sorted(CASES.glob("*.txt"))]


def make_nvidia_smi(case: Case, folder: Path) -> Path:
    """Put an nvidia-smi into a folder that answers as recorded; the folder is for PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    if case.behave == "notexec":
        program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(57))
    elif case.behave == "bytes":
        (folder / "bytes").write_bytes(BYTES)
        program.write_text(f"#!/bin/sh\nexec /bin/cat {folder}/bytes\n")
    elif case.behave == "hang":
        program.write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    elif case.behave == "print":
        lines = ["#!/bin/sh", 'case "$1" in']
        for number, (fields, text) in enumerate(case.answers.items()):
            (folder / f"answer-{number}").write_text(text)
            # An old nvidia-smi has no compute_cap; without it the query works, as it did there.
            status = 0 if case.status == 2 and "compute_cap" not in fields else case.status
            lines.append(f'"--query-gpu={fields}") /bin/cat {folder}/answer-{number}; exit {status};;')
        program.write_text("\n".join([*lines, "*) exit 1;;", "esac", ""]))
    if program.exists():
        program.chmod(0o755)
    return folder


def make_libcuda(folder: Path) -> Path:
    """Compile the stand-in for libcuda.so.1 into a folder, which is then for LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "cuda.c"
    source.write_text(LIBCUDA)
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return folder
