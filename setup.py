"""Drives CMake. The torch that is built against is the environment's, also in an isolated build, which has none."""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def torch_folder() -> str:
    # Isolation hides the environment's packages, not where they are.
    found = find_spec("torch") or PathFinder.find_spec("torch", [sysconfig.get_path("purelib")])
    if found is None or not found.submodule_search_locations:
        sys.exit("tamis: no torch to build against: pip install torch, then this again")
    return found.submodule_search_locations[0]


class CMakeBuild(build_ext):
    def run(self) -> None:
        package = ROOT / "pysrc" / "tamis" if self.inplace else Path(self.build_lib).resolve() / "tamis"
        build = Path(os.environ.get("TAMIS_BUILD_DIR", ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"))
        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if not cmake or not ninja:
            sys.exit("tamis: cmake or ninja not found: pip install cmake ninja")
        configure = [
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DPACKAGE={package}"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTORCH={torch_folder()}",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",  # an isolated build's is gone at the next
            f"-DTAMIS_CUDA={os.environ.get('TAMIS_CUDA', 'auto')}",
            f"-DTAMIS_TESTING={os.environ.get('TAMIS_TESTING', 'OFF')}",
        ]
        build.mkdir(parents=True, exist_ok=True)
        with (build / "lock").open("w") as lock:  # two at once would write the same files: the second finds all made
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.run([cmake, *configure], check=True)
            subprocess.run([cmake, "--build", str(build)], check=True)

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# One extension, so that the wheel is tagged for its platform and Python; CMake knows what is in it.
setup(ext_modules=[Extension("tamis._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
