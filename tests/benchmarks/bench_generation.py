"""Speed of captioning from stored features, beam 4, both passes, against plain `generate`.

    python tests/benchmarks/bench_generation.py [--turns 3] [--annotations FILE] [--tokenizer FOLDER]

DistilGPT2's shape with random weights, 8 videos at a time, 32 frames of made-up features. Random weights never end a
caption, so ends are simulated, the same for both ways: each caption ends where a real one of ActivityNet Captions does, and
each video has that one's number of events. Plain is one `generate` of transformers for the 8 whole-video captions and one for
the events of the 8 videos; captions are checked to be equal. The pipeline, on rows of stored features, is compared with the
model's own `generate` for 4 events a video. Ways take turns; ratios are medians over the turns, their range behind them. A
profile says what the model spends its time on.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import median

import torch
from results import Table, operations, ratios, timed
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList

from sail_hf import (
    DenseVideoCaptioningPipeline,
    SailConfig,
    SailForDenseVideoCaptioning,
    SailProcessor,
    SailVideoProcessor,
)

SHARED = Path(__file__).parents[3] / "shared"
FRAMES, SIZE, BATCH = 32, 768, 8


class EndsAt(LogitsProcessor):
    """Ends row i, of so many beams, after `lengths[i]` tokens and not before."""

    def __init__(self, lengths: list[int], end: int, beams: int):
        self.lengths, self.end, self.beams = lengths, end, beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, length in enumerate(self.lengths):
            rows = slice(row * self.beams, (row + 1) * self.beams)
            end = scores[rows, self.end].clone()
            scores[rows, self.end if input_ids.shape[1] < length - 1 else slice(None)] = -torch.inf
            if input_ids.shape[1] >= length - 1:
                scores[rows, self.end] = end
        return scores


def caption_lengths(annotations: Path, processor: SailProcessor) -> tuple[list[int], list[list[int]]]:
    """Tokens of the whole-video caption of 8 real videos, and of each of their events, prompts left out."""
    videos = json.loads(annotations.read_text())
    names = random.Random(0).sample(sorted(videos), BATCH)
    labels = [processor.caption_labels(videos[name]["sentences"][:14]) for name in names]
    prompt = len(processor.prompt_ids()["event_prompt_ids"])
    full = [min(len(of_video["full_labels"]) - 1, 128) for of_video in labels]
    return full, [[min(len(row) - prompt, 32) for row in of_video["event_labels"]] for of_video in labels]


class Ways:
    """Both ways to caption the same 8 videos, with the same ends."""

    def __init__(self, model: SailForDenseVideoCaptioning, features: Tensor, lengths: tuple):
        self.model, self.features, self.mask = model, features, torch.ones(features.shape[:2], dtype=torch.long)
        full, events = lengths
        self.counts = torch.tensor([len(of_video) for of_video in events])
        config = model.generation_config
        self.full = LogitsProcessorList([EndsAt(full, config.eos_token_id, config.num_beams)])
        of_events = [length for of_video in events for length in of_video]
        self.events = LogitsProcessorList([EndsAt(of_events, config.eos_token_id, config.num_beams)])

    def masks(self) -> Tensor:
        return self.model.model.localize(self.features, self.mask, self.counts)[2]

    @torch.no_grad()
    def own(self) -> tuple[Tensor, Tensor]:
        full = self.model.describe(self.features, self.mask, logits_processor=self.full)
        inputs = (self.features, self.mask, self.masks(), self.counts)
        return full, self.model.caption_events(*inputs, logits_processor=self.events)[0]

    @torch.no_grad()
    def plain(self) -> tuple[Tensor, Tensor]:
        config = self.model.config
        full = self.plain_generate(self.features, config.full_prompt_ids, self.full, 8, 128)
        masks = self.masks()
        pairs = [(b, n) for b, count in enumerate(self.counts.tolist()) for n in range(count)]
        video, event = torch.tensor(pairs).unbind(1)
        frames = self.features[video] * masks[video, event][:, :, None]
        return full, self.plain_generate(frames, config.event_prompt_ids, self.events, 4, 32)

    def plain_generate(self, frames: Tensor, prompt: list[int], ends: LogitsProcessorList, least: int, most: int):
        encoded = self.model.model.video_encoder(frames, torch.ones(frames.shape[:2], dtype=torch.long))
        ids = torch.tensor([list(prompt)] * len(frames))
        embeds = torch.cat([encoded, self.model.get_input_embeddings()(ids)], 1)
        own = self.model.generation_config
        config = GenerationConfig(
            num_beams=own.num_beams,
            no_repeat_ngram_size=own.no_repeat_ngram_size,
            min_new_tokens=least,
            max_new_tokens=most,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
        )
        return self.model.decoder.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            generation_config=config,
            logits_processor=ends,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, default=SHARED / "annotations" / "activitynet" / "train.json")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers" / "gpt2")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if missing := [str(path) for path in (args.annotations, args.tokenizer) if not path.exists()]:
        print(f"skipped: there is no {' and no '.join(missing)}")
        return
    tokenizer = SailProcessor.prepare_tokenizer(AutoTokenizer.from_pretrained(args.tokenizer))
    processor = SailProcessor(SailVideoProcessor(num_frames=FRAMES), tokenizer)
    torch.manual_seed(0)
    model = SailForDenseVideoCaptioning(SailConfig.for_method("sail")).eval()
    features = torch.randn(BATCH, FRAMES, SIZE)
    ways = Ways(model, features, caption_lengths(args.annotations, processor))
    pipe = DenseVideoCaptioningPipeline(model=model, processor=processor)
    rows = [{"video_features": row, "duration": 100.0} for row in features]
    four = torch.full((BATCH,), 4)

    found = {}
    turns = [
        {
            "own": timed(lambda: found.update(own=ways.own())),
            "plain": timed(lambda: found.update(plain=ways.plain())),
            "model": timed(lambda: model.generate(features, num_events=four)),
            "pipeline": timed(lambda: pipe(rows, batch_size=BATCH, num_events=4)),
        }
        for _ in range(args.turns)
    ]
    for one, other in zip(found["own"], found["plain"], strict=True):
        if not torch.equal(one, other):
            raise SystemExit("The captions of both ways differ.")
    table = Table("both passes, 8 videos", "CPU s", "plain, CPU s", "times faster: CPU", "wall")
    cpu = {way: f"{median(turn[way].cpu for turn in turns):.1f}" for way in turns[0]}
    table.row("model", cpu["own"], cpu["plain"], *(ratios(turns, "plain", "own", of) for of in ("cpu", "wall")))
    print()
    print(f"Model, shares of the time by torch's profiler: {operations(ways.own)}.\n")
    table = Table("events of 8 videos", "CPU s", "the model alone, CPU s", "times as long: CPU", "wall")
    table.row(
        "pipeline", cpu["pipeline"], cpu["model"], *(ratios(turns, "pipeline", "model", of) for of in ("cpu", "wall"))
    )


if __name__ == "__main__":
    main()
