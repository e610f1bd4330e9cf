"""Tests have a cache of their own, with a copy of the profile; the reader's stays as it is."""
import shutil

import pytest

from flm_nb.core import cache_folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache folder for the whole session, seen by every process that a test starts."""
    profile, folder = cache_folder() / "here.json", tmp_path_factory.mktemp("cache")
    if profile.exists():
        shutil.copy(profile, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLM_NB_CACHE", str(folder))
        yield folder
