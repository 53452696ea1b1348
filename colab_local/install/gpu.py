"""Whether the locked packages can use this machine's GPUs: decided before anything is downloaded.

What is asked (the driver itself, nvidia-smi, the machine) is in gpu_questions.py, the answers' shapes in
gpu_answers.py, the reasons for a refusal in gpu_reasons.py. Nothing here looks at the machine.

Which cards a lock serves comes from lockfiles/index.json, which scripts/lock.py derives from the locked libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.install import gpu_reasons
from colab_local.install.gpu_answers import (
    BAD_DEVICE,
    BAD_PTX,
    BUSY,
    NEWER_PTX,
    NO_CODE,
    NO_JIT,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    DriverAnswer,
    Gpu,
    Need,
    Situation,
    SmiAnswer,
    capability_by_name,
    hides_all,
    number,
    without_cuda,
)
from colab_local.install.gpu_reasons import CPU

SIZE_TOO_SMALL_MIB = 2500  # TensorFlow and cuDNN take about 1 GB for themselves before the first layer

# NVIDIA's last driver series for cards of an old capability.
LAST_DRIVER = {"2": "390", "3": "470", "5": "580", "6": "580", "7.0": "580"}


@dataclass(frozen=True)
class Decision:
    """Whether to go on: the refusal or None, what to say, and the cards for --json."""

    refusal: Failure | None
    notices: tuple[str, ...]
    gpus: tuple[dict[str, Any], ...]


# ---------------------------------------------------------------------------------------------------------
# One card


@dataclass(frozen=True)
class Verdict:
    """What holds for one card: usable, why it is not, and which of the reasons that is."""

    gpu: Gpu
    usable: bool = True
    reason: str = ""  # old-card, no-code, no-cuda, old-driver, no-jit, busy, broken
    words: str = ""
    note: str = ""


def judge(gpu: Gpu, needs: Mapping[str, Need], cuda: str) -> Verdict:
    """Return what holds for a card; cuda: what libcuda said it runs, "" if it was not asked."""
    if not cuda and without_cuda(gpu.name):
        return Verdict(gpu, False, "no-cuda", gpu_reasons.graphics_alone(gpu.name))
    answered = gpu.compute_capability
    capability = answered or capability_by_name(gpu.name)
    shown = f"{gpu.name} ({capability})" if answered else gpu.name
    served = sorted(needs, key=number)
    span = f"{served[0]} to {served[-1]}" if served else "none"
    need = needs.get(capability)
    if capability and need is None:
        old = bool(served) and number(capability) < number(served[0])
        words = f"the locked packages have no code for {'' if answered else 'what seems to be '}compute capability "
        words += f"{capability} of {gpu.name} (need {span})"
        if old:
            last = LAST_DRIVER.get(capability[0], "")
            words += f"; no newer driver helps{f', the last one for it is {last}' if last == '470' else ''}"
        if answered or number(gpu.driver) < min((number(n.driver) for n in needs.values()), default=()):
            return Verdict(gpu, False, "old-card" if old else "no-code", words)
        return Verdict(gpu, note=f"{words}: it will probably not work; nvidia-smi here does not tell the capability")
    need = need or Need(
        min((n.cuda for n in needs.values() if n.cuda), key=number, default=""),
        min((n.driver for n in needs.values()), key=number, default="0"),
        note=min((n.note for n in needs.values()), key=len, default=""),
    )
    if cuda and need.cuda and number(cuda) < number(need.cuda):
        words = f"the NVIDIA driver is too old for {shown}: it runs CUDA {cuda}, need {need.cuda} or newer"
        words += f" (driver {need.driver} or newer){_last_series(capability)}"
        return Verdict(gpu, False, "old-driver", words)
    if not cuda and gpu.driver and number(gpu.driver) < number(need.driver):
        words = f"the NVIDIA driver is too old for {shown} (found {gpu.driver}, need {need.driver} or newer)"
        return Verdict(gpu, False, "old-driver", words + _last_series(capability))
    guess = f"by its name it is {capability}" if capability else "it may be too old or too new"
    return _judge_context(gpu, shown, need, "" if answered else guess)


def _last_series(capability: str) -> str:
    last = LAST_DRIVER.get(capability, "") or LAST_DRIVER.get(capability[:1], "")
    return f"; NVIDIA's last series for this card is {last}" if last == "580" else ""


def _judge_context(gpu: Gpu, shown: str, need: Need, guess: str) -> Verdict:
    """Return what holds for a card whose capability and driver are fine: did it give a context, did it take PTX?

    guess: what to say of a capability that was not told.
    """
    if gpu.ptx in (NEWER_PTX, BAD_PTX, NO_CODE):
        words = f"the driver does not take the packages' code for {shown} (PTX {need.ptx}, CUDA error {gpu.ptx})"
        return Verdict(gpu, False, "old-driver", words + f"; need driver {need.driver} or newer")
    if gpu.ptx == NO_JIT:
        words = f"the driver's compiler is missing (libnvidia-ptxjitcompiler.so.1), which {shown} needs"
        return Verdict(gpu, False, "no-jit", words)
    if gpu.context in (OUT_OF_MEMORY, BUSY, BAD_DEVICE):
        return Verdict(gpu, note=f"{shown} is taken by another program now: nothing can run on it until that ends")
    if gpu.context == NOT_SUPPORTED:  # https://github.com/tensorflow/tensorflow/issues/23820
        words = (
            f"{shown} lets no program compute (CUDA error {gpu.context}): a virtual GPU's profile or host forbids it"
        )
        return Verdict(gpu, False, "no-cuda", words)
    if gpu.context > 0:
        words = f"{shown} does not work (CUDA error {gpu.context} when a context is made)"
        return Verdict(gpu, False, "broken", words)
    notes = [need.note] if need.note else []
    if guess:
        notes.append(f"nvidia-smi does not tell the compute capability of {gpu.name}: {guess}")
    if 0 < gpu.memory_mib < SIZE_TOO_SMALL_MIB:
        notes.append(f"{gpu.name} has {gpu.memory_mib} MiB: enough for small networks alone")
    elif 0 <= gpu.free_mib < min(SIZE_TOO_SMALL_MIB, gpu.memory_mib):
        notes.append(f"{gpu.name} has {gpu.free_mib} of {gpu.memory_mib} MiB free: other programs hold the rest")
    return Verdict(gpu, note="; ".join(notes))


# ---------------------------------------------------------------------------------------------------------
# The decision


def decide(
    needs: Mapping[str, Need],
    driver: DriverAnswer,
    smi: SmiAnswer,
    situation: Situation,
    others: Mapping[str, Mapping[str, Need]] | None = None,
) -> Decision:
    """Return whether the lock can be used here.

    needs: of the environment that was asked for; others: {name: needs} of the environments for a GPU beside it.
    """
    if driver.silent_in:
        return _refused(gpu_reasons.silent(f"{driver.silent_in} of libcuda.so.1", situation))
    gpus = driver.gpus or smi.gpus
    hidden = driver.hidden if driver.gpus else hides_all(situation.visible, len(smi.gpus))
    if driver.library and driver.status:
        return _refused(gpu_reasons.driver_failure(driver, smi, situation))
    if driver.died:
        return _refused(
            gpu_reasons.restart(f"the NVIDIA driver's libcuda.so.1 crashed (signal {driver.died})", situation)
        )
    if not gpus:
        return _refused(gpu_reasons.smi_failure(smi, situation))
    if smi.prohibited:
        return _refused(gpu_reasons.prohibited(gpus[0], situation))
    verdicts = [judge(gpu, needs, driver.cuda) for gpu in gpus]
    cards = tuple(card_document(verdict) for verdict in verdicts)
    usable = [verdict for verdict in verdicts if verdict.usable]
    if not usable:
        return Decision(card_failure(verdicts, driver.cuda, situation, others or {}), (), cards)
    return Decision(None, tuple(_notices(verdicts, driver, smi, situation, hidden)), cards)


def _refused(failure: Failure) -> Decision:
    return Decision(failure, (), ())


def _notices(
    verdicts: Sequence[Verdict], driver: DriverAnswer, smi: SmiAnswer, situation: Situation, hidden: bool
) -> list[str]:
    """Return what to say of cards of which at least one can be used."""
    said = counted([describe(verdict.gpu) for verdict in verdicts])
    said += counted([verdict.note for verdict in verdicts if verdict.note])
    bad = [verdict for verdict in verdicts if not verdict.usable]
    said += counted([verdict.words for verdict in bad])
    if bad:
        good = ",".join(str(n) for n, verdict in enumerate(verdicts) if verdict.usable)
        order = "" if driver.gpus else "CUDA_DEVICE_ORDER=PCI_BUS_ID "  # nvidia-smi's order, not CUDA's
        said.append(f"leave that out where it disturbs: {order}CUDA_VISIBLE_DEVICES={good}")
    if hidden:
        said.append(
            f"CUDA_VISIBLE_DEVICES={situation.visible} hides every GPU from what is started in this shell; "
            "`unset CUDA_VISIBLE_DEVICES` shows them again"
        )
    if not driver.library:
        cure = gpu_reasons.whole_driver(situation)
        said.append(f"libcuda.so.1 is not found here, and TensorFlow needs it: {cure}")
    if smi.lost:
        lost = "1 more card is" if smi.lost == 1 else f"{smi.lost} more cards are"
        said.append(f"{lost} lost and needs a reset: `sudo nvidia-smi --gpu-reset` or a restart")
    if smi.unlicensed:
        said.append("this virtual GPU has no licence: NVIDIA slows it down, and CUDA may stop; see `nvidia-smi -q`")
    return said


def describe(gpu: Gpu) -> str:
    """Return a card in one line."""
    return f"{gpu.name}, driver {gpu.driver or 'unknown'}, compute capability {gpu.compute_capability or 'unknown'}"


def counted(lines: Sequence[str]) -> list[str]:
    """Return every line once, in order; `2 x` before one that comes twice."""
    return [line if lines.count(line) == 1 else f"{lines.count(line)} x {line}" for line in dict.fromkeys(lines)]


def card_document(verdict: Verdict) -> dict[str, Any]:
    """Return a card as --json has it; null is what nothing told."""
    gpu = verdict.gpu
    return {
        "name": gpu.name,
        "driver": gpu.driver or None,
        "compute_capability": gpu.compute_capability or None,
        "memory_mib": gpu.memory_mib or None,
        "free_mib": gpu.free_mib if gpu.free_mib >= 0 else None,
        "uuid": gpu.uuid or None,
        "usable": verdict.usable,
        "note": verdict.words or verdict.note,
    }


def card_failure(
    verdicts: Sequence[Verdict], cuda: str, situation: Situation, others: Mapping[str, Mapping[str, Need]]
) -> Failure:
    """Return why none of these cards can be used; cuda, others: as in judge() and decide()."""
    words = "; ".join(counted([verdict.words for verdict in verdicts]))
    reasons = {verdict.reason for verdict in verdicts}
    old = "old-driver" in reasons
    takes: list[str] = []
    for name, needs in others.items():
        found = [judge(verdict.gpu, needs, cuda) for verdict in verdicts if verdict.gpu.compute_capability]
        fitting = next((one for one in found if one.usable), None)
        late = next((one for one in found if one.reason == "old-driver"), None)
        note = f" ({fitting.note})" if fitting and fitting.note else ""
        if fitting and old:  # a driver can be updated, but not by everybody
            takes.append(f"{name}{note}")
        elif fitting:
            hint = (
                f"python3 bootstrap.py !--engine !--python --env {name}"  # gpu-forge has no other Python than conda's
            )
            return Failure(f"{words}; the environment {name} has code for it{note}", hint, EXIT_MACHINE)
        elif late and not old:
            words += f"; the environment {name} has code for it, but {late.words}"
            return gpu_reasons.newer_driver(words, situation)
    if takes:
        words += f"; who can't update it: this driver takes the code of the environment {', or of '.join(takes)}"
    if reasons == {"no-code"}:
        return Failure(f"{words}; docs/gpu.md says what else there is", CPU, EXIT_MACHINE)
    if "old-driver" in reasons:
        return gpu_reasons.newer_driver(words, situation)
    if "no-jit" in reasons:
        return Failure(f"{words}: {gpu_reasons.whole_driver(situation)}", CPU, EXIT_MACHINE)
    if "broken" in reasons:
        return gpu_reasons.restart(words, situation)
    return Failure(words, CPU, EXIT_MACHINE)
