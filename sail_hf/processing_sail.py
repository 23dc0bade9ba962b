"""Processor of SAIL: frames for CLIP, prompts and labels for the decoder, and events in seconds out of the model's output."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .generation_sail import SailGenerateOutput
from .loss_sail import IGNORE_INDEX
from .sharing import SavedWithCode


def format_sentence(sentence: str, form: str = "sail") -> str:
    """A caption as the decoder learns it: stripped, capitalised, ending in a full stop (or its own `!` or `?`).

    `form="ilcacm"`: as ILCACM's code has it, in lower case after the first letter, and with a full stop after all but one.

    Raises:
        ValueError: the caption is empty.
    """
    sentence = " ".join(sentence.split())
    if not sentence:
        raise ValueError("Expected a caption with at least one word, found an empty one.")
    sentence = sentence.capitalize() if form == "ilcacm" else sentence[0].upper() + sentence[1:]
    return sentence if sentence[-1] in ("." if form == "ilcacm" else ".!?") else sentence + "."


class SailProcessor(SavedWithCode, ProcessorMixin):
    """Joins a [`SailVideoProcessor`] and the decoder's tokenizer.

    Args:
        video_processor ([`SailVideoProcessor`])
        tokenizer (`PreTrainedTokenizerBase`): with the tokens that [`SailProcessor.prepare_tokenizer`] adds.
        sentence_form (`str`, defaults to `"sail"`): how captions are written for the decoder, `"sail"` or `"ilcacm"`; see
            [`format_sentence`].
    """

    def __init__(self, video_processor, tokenizer, sentence_form: str = "sail"):
        if sentence_form not in ("sail", "ilcacm"):
            raise ValueError(f"`sentence_form` must be 'sail' or 'ilcacm', found {sentence_form!r}.")
        self.sentence_form = sentence_form
        super().__init__(video_processor, tokenizer)

    @staticmethod
    def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Add `<PAD>`, `<FULL>` and `<MASK>`, in this order, after the tokenizer's own vocabulary, and return it."""
        tokenizer.add_special_tokens(
            {"pad_token": "<PAD>", "extra_special_tokens": ["<FULL>", "<MASK>"]}, replace_extra_special_tokens=False
        )
        return tokenizer

    def prompt_ids(self) -> dict[str, list[int]]:
        """`full_prompt_ids`, `event_prompt_ids` and `separator_ids` of [`SailConfig`] for this tokenizer.

        Raises:
            ValueError: the tokenizer lacks the special tokens, or does not keep spaces between sentences apart.
        """
        ids = {
            "full_prompt_ids": self._ids("<FULL>"),
            "event_prompt_ids": self._ids("<MASK>") + self._ids("1 events: "),
            "separator_ids": self._ids(" "),
        }
        if len(ids["full_prompt_ids"]) != 1 or not ids["separator_ids"]:
            raise ValueError(
                "The tokenizer must know the tokens <FULL> and <MASK> (SailProcessor.prepare_tokenizer adds them) and "
                f"must keep a single space; found {ids}."
            )
        prompt, space = self._ids("1 events: "), ids["separator_ids"]
        places = [i for i in range(len(prompt)) if prompt[i : i + len(space)] == space]
        if places != [len(prompt) - len(space)]:
            raise ValueError(
                "The end of '1 events: ' must be the only place where the tokenizer has a space as a token of its own, "
                f"since it separates the sentences; found {self.tokenizer.convert_ids_to_tokens(prompt)}. A tokenizer "
                "trained on little text needs '1 events: ' in its training text."
            )
        return ids

    def _ids(self, text: str, **kwargs) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **kwargs)["input_ids"]

    def caption_labels(self, captions: Sequence[str], max_length: int | None = None) -> dict[str, Any]:
        """Label ids of one video with N captions in order.

        Returns:
            `full_labels`: `<FULL>N events: ` and all sentences; `event_labels`: N lists `<MASK>1 events: ` and the
            sentence; `complement_labels`: N lists `<MASK>{N-1} events: ` and the other sentences, empty if N = 1.
            Each ends in the tokenizer's end token; one longer than `max_length` is cut.
        """
        # What looks like a special token in a caption is text.
        formatted = [format_sentence(caption, self.sentence_form) for caption in captions]
        sentences = [self._ids(sentence, split_special_tokens=True) for sentence in formatted]
        space, end = self._ids(" "), [self.tokenizer.eos_token_id]
        count = len(sentences)

        def text(parts: list[list[int]]) -> list[int]:
            return [token for part in parts for token in part + space]

        complements: list[list[int]] = [[] for _ in sentences]
        if count > 1:
            prompt = self._ids("<MASK>") + self._ids(f"{count - 1} events: ")
            complements = [prompt + text(sentences[:i] + sentences[i + 1 :]) + end for i in range(count)]
        full = self._ids("<FULL>") + self._ids(f"{count} events: ") + text(sentences)
        one = self._ids("<MASK>") + self._ids("1 events: ")
        return {
            "full_labels": (full[: -len(space)] + end)[:max_length],
            "event_labels": [(one + text([sentence]) + end)[:max_length] for sentence in sentences],
            "complement_labels": [row[:max_length] for row in complements],
        }

    def word_positions(self, caption: str) -> list[list[int]]:
        """For each word of `caption.split()`, the positions in its row of `event_labels` that predict its tokens.

        Raises:
            ValueError: the tokenizer cannot tell where its tokens lie in a text.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"Which tokens are of which word only fast tokenizers tell, and {type(self.tokenizer).__name__} is none."
            )
        text, first = format_sentence(caption, self.sentence_form), len(self._ids("<MASK>") + self._ids("1 events: "))
        options = {"split_special_tokens": True, "return_offsets_mapping": True}
        spans = self.tokenizer(text, add_special_tokens=False, **options)["offset_mapping"]
        words = [match.span() for match in re.finditer(r"\S+", text)]
        return [
            [first + i - 1 for i, (start, end) in enumerate(spans) if start < stop and begin < end]
            for begin, stop in words
        ]

    def __call__(
        self,
        videos: Any = None,
        captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
        return_tensors: str = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Model inputs for videos, with labels where captions are given. The model takes all of it.

        Args:
            videos: one video or a list; see [`SailVideoProcessor`] for what a video may be, and for `kwargs` (`fps`,
                `num_frames`, `start`, `end`).
            captions: for each video its captions in order; for one video, they may be given without a list around them.

        Returns:
            `pixel_values_videos` `(B, T, 3, H, W)`, `video_attention_mask` `(B, T)`, `durations` `(B,)` in seconds;
            with captions also `num_events` and the labels of [`SailForDenseVideoCaptioning.forward`].

        Raises:
            ValueError: another number of lists of captions than of videos, an empty one, options of videos without videos,
                or tensors of another kind than PyTorch's.
        """
        if return_tensors != "pt":
            raise ValueError(f"The processor makes PyTorch tensors (return_tensors='pt'), found {return_tensors!r}.")
        if videos is None and (captions is None or kwargs):
            found = f"the options {', '.join(kwargs)} without videos" if kwargs else "neither"
            raise ValueError(f"Expected `videos`, `captions` or both, found {found}.")
        data = BatchFeature()
        if videos is not None:
            data.update(self.video_processor(videos, return_tensors=return_tensors, **kwargs))
        if captions is not None:
            lists = [captions] if captions and all(isinstance(text, str) for text in captions) else list(captions)
            if isinstance(captions, str) or not lists or not all(lists) or any(isinstance(of, str) for of in lists):
                raise ValueError(
                    f"`captions` must hold a list of sentences for each video, found {str(captions)[:80]!r}."
                )
            if videos is not None and len(lists) != len(data["durations"]):
                raise ValueError(f"Expected captions of {len(data['durations'])} videos, found those of {len(lists)}.")
            data.update(collate_labels([self.caption_labels(of_video) for of_video in lists]))
        return data

    def post_process_dense_captioning(
        self,
        outputs: SailGenerateOutput,
        durations: Sequence[float] | torch.Tensor,
        starts: Sequence[float] | torch.Tensor | None = None,
        words: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Events of each video from [`SailForDenseVideoCaptioning.generate`].

        Args:
            durations: `(B,)` seconds that the frames span.
            starts: `(B,)` seconds at which they begin. Defaults to 0.
            words: where the words of each row of `outputs.sequences` are seen ([`seen_words`]), for the events' `"words"`.

        Returns:
            For each video a list of `{"start": s, "end": s, "text": str, "score": float}` sorted by start, in seconds.
        """
        texts = self.tokenizer.batch_decode(outputs.sequences, skip_special_tokens=True)
        told = [{} for _ in texts] if words is None else [{"words": of_event} for of_event in words]
        rows = iter(zip(texts, outputs.scores.tolist(), told, strict=True))
        starts = [0.0] * len(durations) if starts is None else starts
        videos = []
        for index, count in enumerate(outputs.num_events.tolist()):
            center = outputs.event_centers[index, :count].float().cpu().numpy()
            width = outputs.event_widths[index, :count].float().cpu().numpy()
            bounds = np.stack([center - width / 2, center + width / 2], axis=1).clip(0, 1)
            seconds = float(starts[index]) + bounds * float(durations[index])
            events = []
            for (start, end), (text, score, more) in zip(seconds.tolist(), rows, strict=False):
                events.append({"start": start, "end": end, "text": " ".join(text.split()), "score": score, **more})
            videos.append(sorted(events, key=lambda event: (event["start"], event["end"])))
        return videos


def collate_labels(labels: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """`num_events` `(B,)`, `full_labels` `(B, L)`, `event_labels` and `complement_labels` `(B, N, L)`, padded with -100.

    `labels`: what [`SailProcessor.caption_labels`] returns, one for each video.
    """
    counts = [len(video["event_labels"]) for video in labels]
    batch = {"num_events": torch.tensor(counts), "full_labels": _pad([video["full_labels"] for video in labels])}
    for name in ("event_labels", "complement_labels"):
        rows = _pad([row for video in labels for row in video[name]])
        batch[name] = pad_sequence(rows.split(counts), batch_first=True, padding_value=IGNORE_INDEX)
    return batch


def _pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of label ids, padded with -100; at least one column."""
    padded = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, IGNORE_INDEX)
    return padded if padded.shape[1] else padded.new_full((len(rows), 1), IGNORE_INDEX)
