"""Train a small CLIP on captioned pictures, from nothing, with open_clip's model, tokenizer and loss.

    python training/playground/train_clip.py --pictures playground/pictures --output clip

`--pictures` is any Hugging Face data set with the columns `image` and `text` and a split `train` (`test`, if there is
one, measures the result); no video and no time stamp is read. The folder that is written (`open_clip_config.json`, `open_clip_model.safetensors`) loads by
`open_clip.create_model("local-dir:FOLDER")` and wherever SAIL takes a CLIP. It holds the preprocessing, too.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser, get_cosine_schedule_with_warmup

from sail_hf.data import write_json, written_whole

_WEIGHTS, _CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


@dataclass
class ClipArguments:
    """A small CLIP and its training. The defaults suit the playground: about a minute on two CPU cores."""

    pictures: str = field(
        metadata={"help": "Data set with the columns image and text: a folder, or a name on the Hub."}
    )
    output: str = field(metadata={"help": "Folder that the CLIP is written to."})
    image_size: int = field(default=96, metadata={"help": "Side of the square input in pixels."})
    patch_size: int = field(default=16, metadata={"help": "Side of a patch in pixels."})
    embed_dim: int = field(default=128, metadata={"help": "D, size of the projections of pictures and texts."})
    width: int = field(default=128, metadata={"help": "Width of both transformers; heads are 32 wide."})
    vision_layers: int = field(default=3, metadata={"help": "Layers of the vision transformer."})
    text_layers: int = field(default=1, metadata={"help": "Layers of the text transformer."})
    context_length: int = field(default=24, metadata={"help": "Longest text in tokens; longer ones are truncated."})
    num_epochs: int = field(default=4, metadata={"help": "Passes over the pictures."})
    batch_size: int = field(default=64, metadata={"help": "Pairs that are contrasted with each other."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak; 10 % linear warm-up, then cosine to 0."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's."})
    seed: int = field(default=0, metadata={"help": "Seeds weights and order."})


def model_config(args: ClipArguments) -> dict:
    """open_clip's description of the model (`model_cfg`) and of the preprocessing (`preprocess_cfg`)."""
    return {
        "model_cfg": {
            "embed_dim": args.embed_dim,
            "vision_cfg": {
                "image_size": args.image_size,
                "patch_size": args.patch_size,
                "width": args.width,
                "head_width": 32,
                "layers": args.vision_layers,
            },
            "text_cfg": {
                "context_length": args.context_length,
                "vocab_size": 49408,
                "width": args.width,
                "heads": args.width // 32,
                "layers": args.text_layers,
            },
        },
        "preprocess_cfg": {
            "size": args.image_size,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
        },
    }


def load_pictures(pictures: str, split: str, image_size: int) -> tuple[torch.Tensor, list[str]]:
    """Pictures resized to squares, uint8 `(n, 3, image_size, image_size)`, and their texts.

    Raises:
        ValueError: the data set lacks the split, the columns or any row.
    """
    from datasets import load_dataset
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    dataset = load_dataset(pictures)
    if split not in dataset or not {"image", "text"} <= set(dataset[split].column_names) or not len(dataset[split]):
        found = {name: part.column_names for name, part in dataset.items()}
        raise ValueError(f"{pictures}: expected rows of `image` and `text` in a split {split!r}, found {found}.")
    images = []
    for image in dataset[split]["image"]:
        pixels = pil_to_tensor(image.convert("RGB"))
        images.append(resize(pixels, [image_size, image_size], InterpolationMode.BICUBIC, antialias=True))
    return torch.stack(images), list(dataset[split]["text"])


def train_clip(args: ClipArguments) -> None:
    """Train by open_clip's contrastive loss and write the folder `args.output`."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    torch.manual_seed(args.seed)
    config = model_config(args)
    images, texts = load_pictures(args.pictures, "train", args.image_size)
    tokens = SimpleTokenizer(context_length=args.context_length)(texts)
    model = open_clip.CLIP(**config["model_cfg"])
    loss_function = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=args.weight_decay, fused=True
    )
    steps_per_epoch = max(1, len(images) // args.batch_size)
    total = args.num_epochs * steps_per_epoch
    scheduler = get_cosine_schedule_with_warmup(optimizer, total // 10, total)
    with tqdm(total=total, desc="Training the CLIP", unit="step") as progress:
        for _ in range(args.num_epochs):
            order = torch.randperm(len(images))
            for rows in order[: steps_per_epoch * args.batch_size].chunk(steps_per_epoch):
                loss = loss_function(*model(normalize(images[rows]), tokens[rows]))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                # As in CLIP: the temperature stays above 1 / 100.
                model.logit_scale.data.clamp_(max=4.6052)
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}")
    save_clip(model, config, args.output)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float in [-1, 1]: the preprocessing that `model_config` states."""
    return images.float() / 127.5 - 1


def save_clip(model: torch.nn.Module, config: dict, folder: str | Path) -> None:
    """Write an open_clip folder. The configuration comes last: a folder that has it is complete."""
    from safetensors.torch import save_file

    folder = Path(folder)
    with written_whole(folder / _WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    write_json(folder / _CONFIG, config)


def retrieval_accuracy(clip_folder: str, pictures: str, split: str = "test", group_size: int = 4) -> float:
    """Share of pictures that are closer to their own text than to the texts of the others in their group.

    Groups are `group_size` pictures in the order of the data set, a split that was not trained on. Texts that say the
    same in other words count as wrong, so that even a perfect CLIP may stay below 1.
    """
    from sail_hf.clip_sail import load_clip

    clip = load_clip(clip_folder)
    images, texts = load_pictures(pictures, split, clip.vision_config.image_size)
    features = torch.nn.functional.normalize(clip.encode_images(normalize(images)), dim=-1)
    text_features = torch.nn.functional.normalize(clip.encode_texts(texts), dim=-1)
    right = 0
    for rows in torch.arange(len(texts)).split(group_size):
        best = rows[(features[rows] @ text_features[rows].T).argmax(-1)]
        right += sum(texts[i] == texts[j] for i, j in zip(rows, best, strict=True))
    return right / len(texts)


def main(argv: list[str] | None = None) -> None:
    from datasets import get_dataset_split_names

    args = HfArgumentParser(ClipArguments).parse_args_into_dataclasses(argv)[0]
    train_clip(args)
    if "test" in get_dataset_split_names(args.pictures):
        accuracy = retrieval_accuracy(args.output, args.pictures)
        print(f"Held-out pictures closest to their own text, of 4: {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
