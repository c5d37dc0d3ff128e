"""What an installed package needs besides its modules."""

import configparser
import pathlib

ROOT = pathlib.Path(__file__).parent.parent


def test_every_data_file_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    installed = set()
    for package, patterns in config["options.package_data"].items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns.split():
            found = set(folder.glob(pattern))
            assert found, f"{package}: {pattern} matches nothing"
            installed |= found
    files = {
        path
        for path in (ROOT / "mp_loop").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert files <= installed
