"""What training needs, tried one by one: each check says what it found and, where that is wrong, the remedy."""

import os
import shutil
import sys
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from calrec_lite.errors import one_line
from calrec_lite.files import cache_folder
from calrec_lite.machine.fitting import Place
from calrec_lite.machine.four_bits import four_bits_error
from calrec_lite.machine.hub import Hub
from calrec_lite.model.compiling import compiler
from calrec_lite.model.device import choose_dtype, device
from calrec_lite.recipe import Base
from calrec_lite.threads import described

PACKAGE = "calrec-lite"
RAM = 2e9, 6e9  # bytes: too little for anything, and what the demo takes
DISK = 2e9, 20e9  # bytes: the smallest base with its run, and a medium one
DRIVER = Path("/proc/driver/nvidia/version")
TORCH = "install one from https://pytorch.org/get-started/locally"

State = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Check:
    """One line: `note` is what some need, `fails` what everything needs."""

    name: str
    state: State
    said: str
    remedy: str = ""


def checks(place: Place, hub: Hub) -> Iterator[Check]:
    """All checks, in order; each is made as it is asked for."""
    tried: list[tuple[str, Callable[[], Check]]] = [
        ("packages", _packages),
        ("device", lambda: _device(place)),
        ("number type", _number_type),
        ("torch", _torch),
        ("4 bits, CPU", lambda: _four_bits("4 bits, CPU", torch.device("cpu"))),
        *([("4 bits, GPU", lambda: _four_bits("4 bits, GPU", device()))] if place.gpu else []),
        ("memory", lambda: _memory(place)),
        ("disk", _disk),
        ("Hub", lambda: _hub(hub)),
        ("compiler", _compiler),
        ("browser", _browser),
    ]
    for name, check in tried:
        try:
            yield check()
        except Exception as error:  # of drivers and libraries, of whatever kind: this is what is looked for
            yield Check(name, "fails", f"{type(error).__name__}: {one_line(error, 200)}", "install calrec-lite anew")


def gigabytes(number: float) -> str:
    """Bytes in GB of 10^9."""
    return f"{number / 1e9:.1f} GB"


def _packages() -> Check:
    """Each package that ours asks for is there in a version that it takes."""
    wrong = []
    for requirement in map(Requirement, requires(PACKAGE) or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            here = "none"
        if here == "none" or not requirement.specifier.contains(here, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} (here: {here})")
    names = ("torch", "transformers", "peft", "bitsandbytes")
    said = f"Python {sys.version.split()[0]}, {', '.join(f'{name} {version(name)}' for name in names)}"
    if wrong:
        return Check("packages", "fails", f"needs {', '.join(wrong)}", f"pip install -U {PACKAGE}")
    return Check("packages", "ok", said)


def _device(place: Place) -> Check:
    if place.gpu:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device())))
        memory = f"{gigabytes(place.free)} of {gigabytes(place.total)} free"
        return Check("device", "ok", f"{place.name}, {memory}, compute capability {capability}")
    cores = described(torch.get_num_threads())
    if not DRIVER.exists() and not shutil.which("nvidia-smi"):
        return Check("device", "ok", f"CPU, {cores}; no NVIDIA GPU: small bases only, in tens of minutes")
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs"
    return Check("device", "note", f"there is an NVIDIA driver, but this torch {built} and sees no GPU", TORCH)


def _number_type() -> Check:
    choice = choose_dtype(Base(model="any"), Path("any"))
    return Check("number type", "ok", f"{choice.dtype}: {choice.why}")


def _torch() -> Check:
    """A product with its gradient, where models run."""
    where = device()
    states = torch.ones(4, 8, device=where, requires_grad=True)
    (states @ torch.ones(8, 2, device=where)).sum().backward()
    if states.grad is None or states.grad.sum().item() != 64:
        return Check("torch", "fails", f"a product on the {where.type.upper()} is wrong", TORCH)
    on = f"CUDA {torch.version.cuda}" if where.type == "cuda" else "CPU"
    return Check("torch", "ok", f"a product and its gradient are right ({on})")


def _four_bits(name: str, where: torch.device) -> Check:
    wrong = four_bits_error(where)
    remedy = "pip install -U bitsandbytes; until then --set base.load_in_4bit=false"
    if wrong:
        return Check(name, "fails", f"an NF4 product: {wrong}", remedy)
    return Check(name, "ok", f"an NF4 product and its gradient are right (bitsandbytes {version('bitsandbytes')})")


def _memory(place: Place) -> Check:
    from calrec_lite.ram import free_ram

    free = free_ram()
    state, remedy = _enough(free, RAM, "close other programs; the demo takes 6 GB")
    if place.gpu and state == "note":
        state, remedy = "ok", ""  # the model is on the GPU
    return Check("memory", state, f"{gigabytes(free)} of RAM free", remedy)


def _disk() -> Check:
    places = {"here, for runs": Path.cwd(), "cache": cache_folder(), "Hub cache": Path(constants.HF_HUB_CACHE)}
    free = {name: shutil.disk_usage(_existing(path)).free for name, path in places.items()}
    locked = [name for name, path in places.items() if not os.access(_existing(path), os.W_OK)]
    said = ", ".join(f"{gigabytes(number)} ({name})" for name, number in free.items())
    elsewhere = "--runs, CALREC_LITE_CACHE and HF_HOME name other places"
    if locked:
        return Check("disk", "fails", f"not to be written to: {', '.join(locked)}", elsewhere)
    state, remedy = _enough(min(free.values()), DISK, f"make room; {elsewhere}")
    return Check("disk", state, f"free: {said}", remedy)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _enough(free: float, bounds: tuple[float, float], remedy: str) -> tuple[State, str]:
    if free < bounds[0]:
        return "fails", remedy
    return ("note", remedy) if free < bounds[1] else ("ok", "")


def _hub(hub: Hub) -> Check:
    if not hub.reached:
        remedy = "base/smollm2-135m-instruct-pypi.yaml comes from PyPI; a downloaded base needs no Hub"
        return Check("Hub", "note", f"not reached ({hub.why})", remedy)
    if hub.refused:
        return Check("Hub", "note", f"reached, but it does not take the token: {hub.refused}", "hf auth login --force")
    if hub.user:
        return Check("Hub", "ok", f"reached, logged in as {hub.user}")
    return Check("Hub", "note", "reached, nobody logged in", "`hf auth login`, for gated bases and for push")


def _compiler() -> Check:
    name = compiler()
    if path := shutil.which(name):
        return Check("compiler", "ok", f"{path}, for optim.compile")
    return Check("compiler", "note", f"{name} is not here; only optim.compile needs it", "Debian: apt install g++")


def _browser() -> Check:
    try:
        name = str(getattr(webbrowser.get(), "name", "")) or "the system's"
    except webbrowser.Error:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if chromium is None:
            remedy = "reports are one file each: open them on another machine"
            return Check("browser", "note", "none here; only looking at pages needs one", remedy)
        name = chromium
    return Check("browser", "ok", f"{name}, for reports and pages")
