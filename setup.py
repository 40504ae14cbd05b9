"""What pyproject.toml cannot say: the wheel has configs/ too, as colorjax/configs/."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["colorjax*"]), "colorjax.configs"],
    package_dir={"colorjax.configs": "configs"},
)
