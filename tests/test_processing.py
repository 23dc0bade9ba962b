"""Labels, prompts, and events in seconds."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, make_clip, make_model, make_processor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sail_hf import SailProcessor
from sail_hf.generation_sail import SailGenerateOutput
from sail_hf.processing_sail import collate_labels, format_sentence


@pytest.fixture(scope="module")
def gpt2(shared):
    """A processor with GPT-2's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    return SailProcessor(make_processor().video_processor, SailProcessor.prepare_tokenizer(tokenizer))


# --- sentences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caption, sentence",
    [
        ("a man lifts a bar", "A man lifts a bar."),
        ("  He puts it  down.\n", "He puts it down."),
        ("eBay is shown", "EBay is shown."),
        ("NASA launches", "NASA launches."),
        ("is he there?", "Is he there?"),
        ("élan und Öl", "Élan und Öl."),
        ("мужчина прыгает", "Мужчина прыгает."),
        ("一个男人在跳舞", "一个男人在跳舞."),
        ("3 people run", "3 people run."),
    ],
)
def test_a_sentence_is_stripped_capitalised_and_ends_in_a_stop(caption, sentence):
    assert format_sentence(caption) == sentence
    assert format_sentence(sentence) == sentence


@pytest.mark.parametrize("caption", ["", "  ", "\n\t"])
def test_an_empty_caption_is_an_error(processor, caption):
    with pytest.raises(ValueError, match="at least one word"):
        processor.caption_labels(["A man runs.", caption])


# --- labels, as section 3 of the design spells them ---------------------------------------------------------------


def test_labels_as_text(processor):
    labels = processor.caption_labels(["a man lifts a bar ", "He puts it down.", "people clap and cheer"])
    text = processor.tokenizer.decode
    assert text(labels["full_labels"]) == (
        "<FULL>3 events: A man lifts a bar. He puts it down. People clap and cheer.<|endoftext|>"
    )
    assert [text(row) for row in labels["event_labels"]] == [
        "<MASK>1 events: A man lifts a bar. <|endoftext|>",
        "<MASK>1 events: He puts it down. <|endoftext|>",
        "<MASK>1 events: People clap and cheer. <|endoftext|>",
    ]
    assert [text(row) for row in labels["complement_labels"]] == [
        "<MASK>2 events: He puts it down. People clap and cheer. <|endoftext|>",
        "<MASK>2 events: A man lifts a bar. People clap and cheer. <|endoftext|>",
        "<MASK>2 events: A man lifts a bar. He puts it down. <|endoftext|>",
    ]


def test_a_video_with_one_caption_has_no_complement(processor):
    labels = processor.caption_labels(["A dog runs on a field."])
    assert processor.tokenizer.decode(labels["full_labels"]) == "<FULL>1 events: A dog runs on a field.<|endoftext|>"
    assert len(labels["event_labels"]) == 1
    assert labels["complement_labels"] == [[]]


def test_labels_in_gpt2_token_ids(gpt2):
    """`<PAD>`, `<FULL>` and `<MASK>` are 50257, 50258 and 50259; `<|endoftext|>` is 50256, one space is 220."""
    sentences = ["One falls.", "A woman helps her."]
    labels = gpt2.caption_labels(sentences)
    one, two = [3198, 8953, 13], [32, 2415, 5419, 607, 13]
    of_1, of_2 = [16, 2995, 25, 220], [17, 2995, 25, 220]
    assert labels == {
        "full_labels": [50258, *of_2, *one, 220, *two, 50256],
        "event_labels": [[50259, *of_1, *one, 220, 50256], [50259, *of_1, *two, 220, 50256]],
        "complement_labels": [[50259, *of_1, *two, 220, 50256], [50259, *of_1, *one, 220, 50256]],
    }


def test_the_default_config_holds_gpt2s_prompts(gpt2):
    from sail_hf import SailConfig

    config = SailConfig()
    expected = {name: list(getattr(config, name)) for name in gpt2.prompt_ids()}
    assert (
        gpt2.prompt_ids()
        == expected
        == {
            "full_prompt_ids": [50258],
            "event_prompt_ids": [50259, 16, 2995, 25, 220],
            "separator_ids": [220],
        }
    )
    assert gpt2.tokenizer.convert_tokens_to_ids(["<PAD>", "<FULL>", "<MASK>"]) == [50257, 50258, 50259]


def test_gpt2_gives_every_sentence_one_separator(gpt2, shared):
    """So the number of sentences can be counted from token ids; also for other scripts and for long numbers."""
    captions = ["он прыгает в воду", "一个男人 在跳舞", "der Mann öffnet 12 Türen", "ok! so? 100 % of it ... done"]
    full = gpt2.caption_labels(captions)["full_labels"]
    # One after `4 events:`, and one between each pair.
    assert full.count(220) == len(captions)


def test_prompts_begin_the_labels(processor):
    ids = processor.prompt_ids()
    labels = processor.caption_labels(CAPTIONS[0])
    assert labels["full_labels"][:1] == ids["full_prompt_ids"]
    for row in labels["event_labels"]:
        assert row[: len(ids["event_prompt_ids"])] == ids["event_prompt_ids"]
    assert processor.tokenizer.decode(ids["event_prompt_ids"] + ids["separator_ids"]) == "<MASK>1 events:  "


def test_sentences_in_ilcacms_form(processor, tmp_path):
    assert format_sentence("the Queen of  England waves!", "ilcacm") == "The queen of england waves!."
    ilcacm = SailProcessor(processor.video_processor, processor.tokenizer, sentence_form="ilcacm")
    ilcacm.save_pretrained(tmp_path)
    loaded = SailProcessor.from_pretrained(tmp_path)
    assert (
        loaded.sentence_form == "ilcacm"
        and SailProcessor.from_pretrained(tmp_path, sentence_form="sail").sentence_form == "sail"
    )
    assert loaded.caption_labels(["A Man runs"]) == processor.caption_labels(["a man runs."])
    with pytest.raises(ValueError, match="'upper'"):
        SailProcessor(processor.video_processor, processor.tokenizer, sentence_form="upper")


def test_long_labels_are_cut(processor):
    whole, cut = processor.caption_labels(CAPTIONS[0]), processor.caption_labels(CAPTIONS[0], max_length=9)
    assert cut["full_labels"] == whole["full_labels"][:9]
    assert cut["event_labels"] == [row[:9] for row in whole["event_labels"]]
    assert cut["complement_labels"] == [row[:9] for row in whole["complement_labels"]]


def test_a_tokenizer_without_the_tokens_is_an_error(processor):
    plain = PreTrainedTokenizerFast(tokenizer_object=make_plain_tokenizer(), eos_token="<|endoftext|>")
    with pytest.raises(ValueError, match="prepare_tokenizer"):
        SailProcessor(processor.video_processor, plain).prompt_ids()


def make_plain_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a man runs"], trainer)
    return tokenizer


def test_prepare_tokenizer_adds_three_tokens_in_order_and_keeps_others():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_plain_tokenizer(), eos_token="<|endoftext|>", extra_special_tokens=["<other>"]
    )
    size = len(tokenizer)
    SailProcessor.prepare_tokenizer(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<PAD>", "<FULL>", "<MASK>"]) == [size, size + 1, size + 2]
    assert tokenizer.pad_token == "<PAD>" and tokenizer.eos_token == "<|endoftext|>"
    assert "<other>" in tokenizer.all_special_tokens
    # Once is enough.
    SailProcessor.prepare_tokenizer(tokenizer)
    assert len(tokenizer) == size + 3


# --- batches of labels --------------------------------------------------------------------------------------------


def test_labels_are_padded_on_the_right_batch_first():
    first = {"full_labels": [1, 2, 3], "event_labels": [[1], [2, 3]], "complement_labels": [[4, 5], [6]]}
    second = {"full_labels": [4], "event_labels": [[7]], "complement_labels": [[]]}
    batch = collate_labels([first, second])
    assert batch["num_events"].tolist() == [2, 1]
    assert batch["full_labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["event_labels"].tolist() == [[[1, -100], [2, 3]], [[7, -100], [-100, -100]]]
    assert batch["complement_labels"].tolist() == [[[4, 5], [6, -100]], [[-100, -100], [-100, -100]]]
    alone = collate_labels([second])
    assert alone["complement_labels"].tolist() == [[[-100]]] and alone["event_labels"].dtype == torch.long


def test_special_tokens_in_captions_are_text(processor):
    """They would end a sentence, or start a prompt."""
    labels = processor.caption_labels(["He says <|endoftext|> and <MASK>.", "People clap."])
    special = processor.tokenizer.convert_tokens_to_ids(["<MASK>", "<|endoftext|>", "<FULL>", "<PAD>"])
    (event, _), full = labels["event_labels"], labels["full_labels"]
    assert [token for token in event if token in special] == special[:2]  # the prompt's, and the end
    assert [token for token in full if token in special] == [special[2], special[1]]
    assert "<|endoftext|> and <MASK>." in processor.tokenizer.decode(event)


def test_labels_of_several_videos_stand_video_by_video(processor):
    batch = collate_labels([processor.caption_labels(captions) for captions in CAPTIONS])
    assert batch["num_events"].tolist() == [3, 2, 1]
    text = [processor.tokenizer.decode(row[row != -100]) for video in batch["event_labels"] for row in video]
    assert [row for row in text if row] == [
        f"<MASK>1 events: {sentence} <|endoftext|>" for captions in CAPTIONS for sentence in captions
    ]
    assert batch["full_labels"].shape[0] == 3 and batch["complement_labels"].shape[:2] == (3, 3)
    there = (batch["complement_labels"] != -100).any(-1)
    assert there.tolist() == [[True, True, True], [True, True, False], [False, False, False]]


def test_the_processor_makes_everything_that_training_needs(processor):
    videos = [np.zeros((10, 40, 60, 3), np.uint8), np.full((4, 40, 60, 3), 255, np.uint8)]
    batch = processor(videos, captions=CAPTIONS[:2], fps=5)
    assert batch["pixel_values_videos"].shape == (2, 8, 3, 32, 32)
    # Black and white after normalisation with mean 0.5 and deviation 0.25.
    assert batch["pixel_values_videos"][0].unique().tolist() == [-2] and batch["pixel_values_videos"][1].max() == 2
    torch.testing.assert_close(batch["durations"], torch.tensor([2.0, 0.8]))
    assert batch["video_attention_mask"].tolist() == [[1] * 8] * 2
    expected = collate_labels([processor.caption_labels(captions) for captions in CAPTIONS[:2]])
    for name, labels in expected.items():
        assert torch.equal(batch[name], labels)


@pytest.mark.parametrize(
    "captions, words",
    [
        ([CAPTIONS[0]], "captions of 2 videos, found those of 1"),
        (["A dog runs.", ["A man."]], "list of sentences"),
        ("A dog runs.", "list of sentences"),
        ([["A man."], []], "list of sentences"),
        ([], "list of sentences"),
        ([["A man."], [" "]], "at least one word"),
    ],
)
def test_captions_that_do_not_fit_the_videos_are_named(processor, captions, words):
    videos = [np.zeros((4, 40, 60, 3), np.uint8)] * 2
    with pytest.raises(ValueError, match=words):
        processor(videos, captions=captions, fps=5)


def test_what_cannot_be_honoured_is_named(processor):
    with pytest.raises(ValueError, match="without videos"):
        processor(captions=["A man."], fps=5)
    with pytest.raises(ValueError, match="found neither"):
        processor()
    with pytest.raises(ValueError, match="'np'"):
        processor(captions=["A man."], return_tensors="np")


def test_what_the_processor_gives_the_model_takes(processor, tmp_path):
    """As the documentation has it: nothing is popped on the way."""
    model = make_model(processor, vision_config=make_clip(tmp_path / "clip").vision_config)
    video = np.random.default_rng(0).integers(0, 255, (12, 40, 60, 3), dtype=np.uint8)
    loss = model(**processor(videos=video, captions=CAPTIONS[0], fps=4)).loss
    assert loss.isfinite()
    inputs = processor(videos=[video, video[:6]], fps=4)
    outputs = model.generate(**inputs, num_events=torch.tensor([2, 1]), max_new_tokens=6)
    first, second = processor.post_process_dense_captioning(outputs, inputs["durations"])
    assert len(first) == 2 and len(second) == 1 and 0 <= second[0]["start"] <= second[0]["end"] <= 1.5


def test_captions_alone_and_videos_alone(processor):
    assert set(processor(captions=[CAPTIONS[0]])) == {"num_events", "full_labels", "event_labels", "complement_labels"}
    images = [Image.new("RGB", (50, 40))] * 3
    assert set(processor(images, fps=3)) == {"pixel_values_videos", "video_attention_mask", "durations"}


# --- events in seconds --------------------------------------------------------------------------------------------


def generated(processor, texts, num_events, centers, widths):
    rows = [processor._ids(text) + [processor.tokenizer.eos_token_id] for text in texts]
    length = max(map(len, rows))
    pad = processor.tokenizer.pad_token_id
    return SailGenerateOutput(
        sequences=torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        scores=torch.tensor([0.5, 0.25, 0.125][: len(rows)]),
        num_events=torch.tensor(num_events),
        event_centers=torch.tensor(centers),
        event_widths=torch.tensor(widths),
    )


def test_events_in_seconds(processor):
    """Two videos of 10 and 20 s: [0.1, 0.3] and [0.25, 0.75] of the first, [0.5, 1] of the second."""
    outputs = generated(
        processor,
        ["A man lifts a bar. ", "He puts it down. ", "A dog runs on a field. "],
        [2, 1],
        [[0.2, 0.5], [0.75, 0.0]],
        [[0.2, 0.5], [0.5, 0.0]],
    )
    first, second = processor.post_process_dense_captioning(outputs, [10.0, 20.0])
    assert [event["text"] for event in first] == ["A man lifts a bar.", "He puts it down."]
    assert [(e["start"], e["end"]) for e in first] == [pytest.approx((1, 3)), pytest.approx((2.5, 7.5))]
    assert [event["score"] for event in first] == [0.5, 0.25]
    assert second == [
        {"start": pytest.approx(10), "end": pytest.approx(20), "text": "A dog runs on a field.", "score": 0.125}
    ]
    assert {type(value) for event in first for value in event.values()} == {float, str}


def test_events_are_cut_to_the_video_and_sorted_by_start(processor):
    """Centre 0.3, width 1 starts before the video; it comes first although its centre is the later one."""
    outputs = generated(
        processor, ["People clap. ", "He puts it down. ", "A dog. "], [3], [[0.2, 0.3, 0.9]], [[0.1, 1.0, 0.6]]
    )
    (events,) = processor.post_process_dense_captioning(outputs, torch.tensor([100.0]))
    assert [e["text"] for e in events] == ["He puts it down.", "People clap.", "A dog."]
    assert [(e["start"], e["end"]) for e in events] == [
        pytest.approx((0, 80)),
        pytest.approx((15, 25)),
        pytest.approx((60, 100)),
    ]


def test_events_of_a_part_of_a_video_begin_where_it_does(processor):
    outputs = generated(processor, ["A dog. "], [1], [[0.5]], [[0.5]])
    ((event,),) = processor.post_process_dense_captioning(outputs, torch.tensor([8.0]), torch.tensor([100.0]))
    assert (event["start"], event["end"]) == pytest.approx((102, 106))


def test_unicode_comes_back_from_token_ids(processor):
    outputs = generated(processor, ["Ça va – 你好 🎬. "], [1], [[0.5]], [[1.0]])
    ((event,),) = processor.post_process_dense_captioning(outputs, [4.0])
    assert event["text"] == "Ça va – 你好 🎬."
