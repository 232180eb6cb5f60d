"""Install what requirements.txt asks for and the base image lacks. Where it lacks nothing, no network is needed."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys


def satisfied(line):
    """True when an installed package fits the line; a line we do not understand is left to pip."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*([<>=!~].*)?", line)
    if match is None:
        return False
    name, wanted = match.groups()
    if name == "openslide-bin":
        # OpenSlide's C library as a wheel: the system's own does as well.
        return subprocess.run([sys.executable, "-c", "import openslide"], stderr=subprocess.DEVNULL).returncode == 0
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if wanted is None:
        return True
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return False
    return SpecifierSet(wanted).contains(version, prereleases=True)


def main(path):
    with open(path) as file:
        lines = [line.split(" #")[0].strip() for line in file]
    missing = [line for line in lines if line and not line.startswith("#") and not satisfied(line)]
    if not missing:
        print("The base image has every requirement.")
        return
    print(f"Installing {', '.join(missing)}", flush=True)
    if importlib.util.find_spec("pip") is None:
        subprocess.run(["apt-get", "update"], check=True)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "python3-pip"], check=True)
    # All of the file, so that pip sees options and constraints; what is there already it leaves alone.
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-cache-dir", "-r", path], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
