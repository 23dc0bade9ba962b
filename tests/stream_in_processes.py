"""Started in two processes by test_trainer.py: trains on a stream and writes what was logged into the folder given."""

import sys
from pathlib import Path

from test_trainer import as_dataset, logs_of, make_trainer
from tiny import make_processor, make_rows

from sail_hf.data import write_json

folder, processor = Path(sys.argv[1]), make_processor()
rows = make_rows(seed=0) + make_rows(seed=1, num_frames=(8, 4, 6))
ways = {"own": (1, None), "dispatched": (2, {"dispatch_batches": True, "split_batches": True})}
for name, (batch_size, config) in ways.items():
    trainer = make_trainer(
        folder / name,
        processor,
        as_dataset(rows).to_iterable_dataset(),
        per_device_train_batch_size=batch_size,
        max_steps=6,
        accelerator_config=config,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        write_json(folder / f"{name}.json", logs_of(trainer))
trainer.accelerator.end_training()
