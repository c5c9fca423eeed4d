import pytest


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """No torch here: the emulator poisons what it hands out."""
