"""Package metadata for setuptools, read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser()
settings.read(here / "settings.ini", encoding="utf-8")

setup(
    **settings["metadata"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["flm_nb", "flm_nb.*"]),
    # catalogue: the facts; score/**: metric modules that `evaluate` loads as files
    package_data={"flm_nb": ["*.json", "catalogue/*", "score/**/*.py"]},
    install_requires=settings["requirements"]["base"].split(),
    extras_require={extra: needs.split() for extra, needs in settings["extras"].items()},
    entry_points={"console_scripts": [" = ".join(row) for row in settings["scripts"].items()]},
)
