"""Why the GPUs of a machine can't be used: one sentence and one hint for each reason."""

from __future__ import annotations

import re
from typing import Sequence

from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.install.gpu_answers import (
    COMPAT,
    ECC,
    FABRIC,
    MISMATCH,
    MPS,
    NO_DEVICE,
    NOT_INITIALIZED,
    OS_CALL,
    OUT_OF_MEMORY,
    STUB,
    UNKNOWN,
    UNLICENSED,
    DriverAnswer,
    Gpu,
    Situation,
    SmiAnswer,
    number,
    without_cuda,
)

WITHOUT = "; --cpu goes without a GPU, --gpu --no-gpu-check builds an image without one"
CPU = "python3 bootstrap.py --cpu"
NVIDIA_PRIME = "sudo prime-select nvidia && sudo reboot"
DRIVERS = "https://www.nvidia.com/drivers"


def _plain(what: str, hint: str) -> Failure:
    """Return a failure that names what works without a GPU, too."""
    return Failure(what + WITHOUT, hint, EXIT_MACHINE)


def restart(what: str, situation: Situation) -> Failure:
    """Return a failure that a restart cures; the hint can be typed where it is read, so a container's says less."""
    if situation.wsl:
        return _plain(f"{what}; restart WSL", "wsl.exe --shutdown")
    if situation.container:
        return _plain(f"{what}; restart the container (docker restart {situation.hostname}, on the host)", CPU)
    return _plain(f"{what}; restart the machine", "sudo reboot")


def silent(what: str, situation: Situation) -> Failure:
    """Return the failure of a driver that hangs; what: what did not come back."""
    return restart(f"the NVIDIA driver does not answer ({what} did not come back in time)", situation)


def driver_failure(driver: DriverAnswer, smi: SmiAnswer, situation: Situation) -> Failure:
    """Return why libcuda does not start; driver.status: cuInit's answer."""
    status, code = driver.status, f"CUDA error {driver.status}{' ' if driver.status_name else ''}{driver.status_name}"
    if status in (NO_DEVICE, UNKNOWN, NOT_INITIALIZED) and smi.words and not smi.gpus:
        return smi_failure(smi, situation)  # its words say more
    if status == NO_DEVICE:
        return without_device(smi.gpus, smi, code, situation) if smi.gpus else no_device(code, situation)
    if status == NOT_INITIALIZED:
        return without_hmm(code, situation)
    if status == FABRIC:
        words = f"the cards' NVSwitch is not ready ({code}): the fabric manager must run, in the driver's own version"
        words += " (in a confidential VM: nvidia-smi conf-compute -srs 1)"  # NVIDIA/nvtrust#56
        return _plain(words, CPU if situation.container else "sudo systemctl restart nvidia-fabricmanager")
    if status == MISMATCH:
        return mismatch(code, situation)
    if status == COMPAT:
        return too_new(code, situation)
    if status == STUB:
        words = f"{driver.library} is CUDA's stub, not the driver: LD_LIBRARY_PATH leads to it"
        return _plain(words, "unset LD_LIBRARY_PATH")
    if status == OS_CALL:
        return forbidden(code, situation)
    if status in MPS:  # https://github.com/NVIDIA/nvidia-container-toolkit/issues/714
        words = f"CUDA's service for many processes (MPS) does not answer ({code}); it must run where this runs"
        return _plain(words, "nvidia-cuda-mps-control -d")
    if status == OUT_OF_MEMORY:
        words = f"the NVIDIA driver gets too little memory to start ({code}): this machine's is full, or a limit of"
        return _plain(f"{words} virtual memory (ulimit -v) is too low", "free -m; ulimit -v")
    if status == UNLICENSED:
        return _plain(f"this virtual GPU has no licence ({code})", "nvidia-smi -q | grep -i license")
    if status == UNKNOWN and situation.wsl:
        return blocked(code)
    if status == UNKNOWN:
        words = f"the NVIDIA driver is in a bad state ({code}), after a suspend say, or nvidia_uvm is not loaded"
        reload = "sudo rmmod nvidia_uvm; sudo modprobe nvidia_uvm"
        return restart(words, situation) if situation.container else _plain(words, reload)
    if status == ECC:
        return restart(f"a card's memory has an error that can't be corrected ({code}) and needs a reset", situation)
    return restart(f"the NVIDIA driver does not start ({code})", situation)


def without_device(gpus: Sequence[Gpu], smi: SmiAnswer, code: str, situation: Situation) -> Failure:
    """Return why CUDA has no device though nvidia-smi shows cards."""
    if all(without_cuda(gpu.name) for gpu in gpus):
        return _plain(f"{graphics_alone(gpus[0].name)} ({code})", CPU)
    words = f"nvidia-smi shows {gpus[0].name}, but CUDA has no device ({code})"
    if smi.mig:  # https://github.com/wilicc/gpu-burn/issues/36
        words += ": the card is split into instances (MIG), and none is there, or none for this user"
        return _plain(words, CPU if situation.container else "sudo nvidia-smi mig -cgi 0 -C")
    return _plain(words, "ls -l /dev/nvidia*")


def graphics_alone(name: str) -> str:
    """Return what is wrong with a virtual GPU of this name."""
    return f"{name} is a virtual GPU for graphics alone: CUDA needs a profile that ends in Q or C"


def prohibited(gpu: Gpu, situation: Situation) -> Failure:
    """Return the failure of cards whose compute mode forbids CUDA."""
    words = f"the compute mode of {gpu.name} forbids every program to compute on it (Prohibited)"
    return _plain(words, CPU if situation.container else "sudo nvidia-smi -c DEFAULT")


def without_hmm(code: str, situation: Situation) -> Failure:
    """Return the failure of a driver that does not start beside some kernels: a known fault of nvidia_uvm.

    https://github.com/NVIDIA/open-gpu-kernel-modules/issues/901 and 947
    """
    words = f"the NVIDIA driver does not start ({code})"
    if situation.wsl:
        return restart(words, situation)
    words += ": on many kernels a setting of its module nvidia_uvm cures it, uvm_disable_hmm=1"
    if situation.container:
        return _plain(words + " (on the host)", CPU)
    setting = "echo options nvidia_uvm uvm_disable_hmm=1 | sudo tee /etc/modprobe.d/nvidia-uvm.conf"
    return _plain(words, f"{setting} && sudo reboot")


def too_new(code: str, situation: Situation) -> Failure:
    """Return the failure of a libcuda that is newer than the kernel module, on a card that does not take that."""
    if not situation.container:
        words = "the NVIDIA driver was updated under the running kernel module, or LD_LIBRARY_PATH leads to a newer"
        return restart(f"{words} libcuda, cuda-compat's ({code})", situation)
    # https://github.com/NVIDIA/nvidia-docker/issues/1515
    words = f"this container's libcuda is newer than the host's driver, which this card does not take ({code}): "
    return _plain(words + "update the driver on the host, or leave the image's cuda-compat out", CPU)


def mismatch(said: str, situation: Situation) -> Failure:
    """Return the failure of a driver whose library and kernel module are of two versions."""
    words = "the NVIDIA driver was updated under the running kernel module"
    if situation.wsl:
        words = "Windows' NVIDIA driver was updated under the running WSL, or a Linux driver is installed inside it"
    elif situation.container:  # https://github.com/NVIDIA/libnvidia-container/issues/266
        words += ", or the image brings libraries of another driver than the host's"
    return restart(f"{words} ({said})", situation)


def blocked(said: str) -> Failure:
    """Return the failure of WSL without a GPU."""
    words = f"Windows gives WSL no GPU ({said}): WSL uses Windows' own NVIDIA driver, no Linux driver inside; "
    return _plain(words + "update both (cards in TCC mode can't be used under WSL)", "wsl.exe --update")


def no_device(said: str, situation: Situation) -> Failure:
    """Return the failure of a driver that finds no card."""
    if situation.wsl:
        return blocked(said)
    series = number(situation.module)[:1]
    if situation.old_cards_only and series >= (590,):
        words = f"driver {situation.module} does not serve this card ({said}): NVIDIA's last series for it is 580"
        return _plain(words, _package("nvidia-driver-580", situation))
    if situation.old_cards_only and situation.open_module:
        words = f"NVIDIA's open kernel modules don't serve this card ({said}): they begin with Turing (RTX 20xx); "
        return _plain(words + "older cards need the others, of driver 580", _package("nvidia-driver-580", situation))
    if situation.new_cards_only and series and not situation.open_module:
        words = f"this card needs NVIDIA's open kernel modules ({said}): the others are loaded, which don't know it"
        return _plain(words, _package(f"nvidia-driver-{series[0]}-open", situation))
    words = f"the NVIDIA driver finds no card ({said}): "
    if situation.container:
        words += "this container was given none (it is started with --gpus all, NVIDIA_VISIBLE_DEVICES=all), or the "
        return _plain(words + "host's kernel log says why (dmesg | grep NVRM)", CPU)
    words += "the kernel's log says why (lines with NVRM)"
    if situation.prime_select and set(situation.vendors) != {"nvidia"}:
        return _plain(words + "; a laptop may have it switched off", NVIDIA_PRIME)
    return _plain(words, "sudo dmesg | grep NVRM")


def _package(name: str, situation: Situation) -> str:
    """Return the command that installs one of Ubuntu's drivers, where there are such; else what works without."""
    return f"sudo apt install {name}" if situation.ubuntu_drivers else CPU


def not_loaded(said: str, situation: Situation) -> Failure:
    """Return the failure of a driver whose kernel module is not loaded."""
    if situation.wsl:
        return blocked(said)
    words = f"the NVIDIA kernel module is not loaded ({said}): "
    if situation.container:
        return _plain(words + "in a container it is the host's, start the driver there", CPU)
    if situation.no_card and situation.prime_select:  # https://github.com/canonical/nvidia-prime/issues/20
        return _plain(words + "the kernel sees no NVIDIA card; a laptop may have it switched off", NVIDIA_PRIME)
    if situation.no_card:  # https://github.com/NVIDIA/DIGITS/issues/1628
        words += "the kernel sees no NVIDIA card, so there is none here, or it is switched off; else "
    if situation.nouveau:
        return _plain(words + "nouveau has the card; install NVIDIA's driver and reboot", _install(situation))
    if situation.secure_boot:
        words += "Secure Boot is on, and the kernel refuses a module without an enrolled key (mokutil --sb-state); "
        return _plain(words + "enrol the key and reboot", "sudo modprobe nvidia")
    words += "reboot after an update; Secure Boot refuses an unsigned module (mokutil --sb-state); "
    words += "or nouveau has the card"
    return _plain(words, "sudo reboot")


def forbidden(said: str, situation: Situation) -> Failure:
    """Return the failure of a user who may not open the GPU's devices."""
    words = f"this user may not use the GPU's devices ({said})"
    if situation.container:  # https://github.com/NVIDIA/nvidia-container-toolkit/issues/268
        words += "; Podman gives them with --security-opt=label=disable"
    return _plain(words, "ls -l /dev/nvidia*")


def two_versions(said: str, situation: Situation) -> Failure:
    """Return the failure of an nvidia-smi beside another driver's library."""
    if situation.wsl:
        return blocked(said)
    words = f"nvidia-smi and the driver's library beside it are of two versions ({said}): "
    if situation.container:
        return _plain(words + "the image must not bring its own", CPU)
    return _plain(words + "install the driver again", _install(situation))


SMI_SAYS = (  # the first that fits: without permission nvidia-smi says, too, that it can't communicate
    (r"Insufficient Permission|/dev/nvidia.*Permission denied", forbidden),
    (r"version mismatch", mismatch),
    (r"Function Not Found", two_versions),  # https://github.com/NVIDIA/nvidia-docker/issues/584
    (r"blocked by the operating system", lambda said, _: blocked(said)),
    (r"couldn't communicate|could not communicate|Driver Not Loaded|driver is not loaded", not_loaded),
    # The open modules find a Volta, but don't serve it: https://github.com/NVIDIA/open-gpu-kernel-modules/issues/259
    (r"No devices? (were|was)? ?found|device handle.*: Not Found", no_device),
)


def smi_failure(smi: SmiAnswer, situation: Situation) -> Failure:
    """Return why there are no cards, from nvidia-smi's own words."""
    if not smi.program:
        return absent(situation)
    if smi.problem == "silent":
        return silent("nvidia-smi", situation)
    if smi.problem:
        return _plain(f"nvidia-smi can't be run ({smi.program}: {smi.problem})", "command -v nvidia-smi")
    said = f"nvidia-smi says: {smi.words or 'nothing'}"
    for pattern, failure in SMI_SAYS:
        if re.search(pattern, smi.words, re.IGNORECASE):
            return failure(said, situation)
    if smi.lost or re.search(r"GPU is lost|requires reset|fallen off|device handle", smi.words):
        return restart(f"the card is lost ({said}) and needs a reset (sudo nvidia-smi --gpu-reset)", situation)
    if "libnvidia-ml" in smi.words:
        return incomplete(said, situation)
    if re.search(r"permission", smi.words, re.IGNORECASE):
        return forbidden(said, situation)
    if "External Power" in smi.words:
        return _plain(f"the card's power cables are not plugged in ({said})", CPU)
    if "Unknown Error" in smi.words:
        lost = "this container has lost its GPU" if situation.container else "the NVIDIA driver is in a bad state"
        hint = "; a container must restart" if not situation.container and not situation.wsl else ""
        return restart(f"{lost} ({said}){hint}", situation)
    if situation.wsl:  # https://github.com/microsoft/WSL/issues/11755: "Failed to initialize NVML: N/A"
        return blocked(said)
    return _plain(f"no NVIDIA GPU can be used ({said})", CPU)


def incomplete(said: str, situation: Situation) -> Failure:
    """Return the failure of nvidia-smi without the driver's libraries."""
    if situation.wsl:
        return blocked(said)
    words = f"the NVIDIA driver's libraries are missing ({said}); a container gets them with --gpus all"
    return _plain(words, CPU if situation.container else _install(situation))


def absent(situation: Situation) -> Failure:
    """Return the failure of a machine without nvidia-smi: another maker's card, or no driver."""
    vendors = set(situation.vendors)
    words = "no NVIDIA driver found (nvidia-smi is not there)"
    if situation.wsl:
        return blocked(words)
    if "nvidia" not in vendors and "amd" in vendors:
        return _plain(f"{words}, and the GPU here is AMD's: these packages are for NVIDIA's alone", CPU)
    if "nvidia" not in vendors and "intel" in vendors:
        return _plain(f"{words}, and the GPU here is Intel's: these packages are for NVIDIA's alone", CPU)
    if situation.container:
        words += "; a container sees the GPU when it is started with --gpus all (NVIDIA Container Toolkit), "
        words += "Apptainer's with --nv"
        return _plain(words, CPU)
    if "nvidia" in vendors:
        words += ", though an NVIDIA card is here" + (" and nouveau has it" if situation.nouveau else "")
    else:
        words += "; a desktop gets it with: sudo ubuntu-drivers install; a container with: --gpus all"
    return _plain(words, _install(situation) if "nvidia" in vendors else CPU)


def _install(situation: Situation) -> str:
    """Return the command that installs a driver, where there is one; else what works without."""
    return "sudo ubuntu-drivers install && sudo reboot" if situation.ubuntu_drivers else CPU


def newer_driver(words: str, situation: Situation) -> Failure:
    """Return the failure of a driver that is too old; words: which card, found, needed."""
    if situation.wsl:
        return Failure(f"{words}; under WSL the driver is Windows': {DRIVERS}", CPU, EXIT_MACHINE)
    if situation.container and not situation.ubuntu_drivers:
        return Failure(f"{words}; in a container the driver is the host's: update it there", CPU, EXIT_MACHINE)
    return Failure(f"{words}; newer ones: {DRIVERS}", _install(situation), EXIT_MACHINE)


def whole_driver(situation: Situation) -> str:
    """Return what brings a missing library of the driver."""
    if situation.wsl:
        return "Windows' own NVIDIA driver brings it, no Linux driver inside WSL; update it and `wsl.exe --shutdown`"
    if situation.container:
        return "start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    return "install the whole driver (Debian, Ubuntu: libnvidia-compute)"


def other_platform(system: str, machine: str) -> Failure | None:
    """Return why a GPU can't be used on a system or processor for which no build exists, or None on Linux x86_64.

    system, machine: as platform.system() and platform.machine() say them.
    """
    if system == "Darwin":
        words = "Apple's GPU can't be used: there is no tensorflow-metal for this TensorFlow"
        return Failure(words, CPU, EXIT_MACHINE)
    if system == "Linux" and machine in ("aarch64", "arm64"):
        words = (
            "a GPU beside an ARM processor (Jetson, Grace, GB10) can't be used: TensorFlow has no package with CUDA "
        )
        words += "for aarch64; NVIDIA's container has one (nvcr.io/nvidia/tensorflow)"
        return Failure(words, CPU, EXIT_MACHINE)
    return None
