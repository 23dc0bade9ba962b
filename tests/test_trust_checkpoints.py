"""Checkpoints that are resumed from: what poses as the state of a training run is loaded as tensors alone, or refused."""

import pickle

import pytest
from test_trainer import make_trainer
from tiny import make_rows


class Attack:
    """Unpickled, it writes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_state_is_not_run(tmp_path, processor, name):
    make_trainer(tmp_path, processor, make_rows(), max_steps=4, save_strategy="steps", save_steps=2).train()
    checkpoint, marker = tmp_path / "checkpoint-2", tmp_path / "marker"
    attack = pickle.dumps(Attack(marker))
    pickle.loads(attack).close()  # it works
    marker.unlink()
    (checkpoint / name).write_bytes(attack)
    with pytest.raises(pickle.UnpicklingError):
        make_trainer(tmp_path, processor, make_rows(), max_steps=4).train(resume_from_checkpoint=str(checkpoint))
    assert not marker.exists()
