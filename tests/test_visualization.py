import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sail_hf.visualization import format_html, plot_events, plot_words


class _Page(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [("", {})], {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text[self.tags[-1][0]] = self.text.get(self.tags[-1][0], "") + data


def test_html_page_holds_events_and_escapes():
    sentence = 'A "cat" </script><script>alert(1)</script> $title'
    page = _Page(format_html([{"start": 1, "end": 2.5, "text": sentence}], 'my "video" $data.mp4', "Cats & <dogs>"))
    assert [attrs["src"] for tag, attrs in page.tags if "src" in attrs] == ['my "video" $data.mp4']
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.text["title"].strip() == "Cats & <dogs>"
    data = re.search(r"const events = (.*);\n", page.text["script"]).group(1)
    assert json.loads(data) == [{"start": 1.0, "end": 2.5, "text": sentence}]


def two_halves(num_frames: int = 40) -> np.ndarray:
    """A video whose first half is red, the second blue: 40 frames of 48 x 64."""
    video = np.zeros((num_frames, 48, 64, 3), dtype=np.uint8)
    video[: num_frames // 2, ..., 0] = 255
    video[num_frames // 2 :, ..., 2] = 255
    return video


@pytest.fixture
def plot():
    pytest.importorskip("matplotlib")
    return lambda *args, **kwargs: plot_events(two_halves(), *args, fps=4, **kwargs)


def test_plot_places_thumbnails_masks_and_bars(plot, tmp_path):
    from matplotlib.colors import to_rgb

    events = [
        {"start": 1.0, "end": 4.0, "text": "One.", "score": 0.25},
        {"start": 3.0, "end": 9.0, "text": "Two.", "gain": 1.5},
    ]
    masks = np.array([[0.0, 0.5, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.5, 1.0]])
    figure = plot(events, masks, references=[{"start": 2.0, "end": 5.0, "text": "True."}], title="A video")
    thumbnails, mask_panel, predicted, true = figure.axes

    assert all(axes.get_xlim() == (0, 10) for axes in figure.axes)
    images = thumbnails.get_images()
    assert images[0].get_extent()[0] == 0 and images[-1].get_extent()[1] == pytest.approx(10)
    for image in images:
        left, right = image.get_extent()[:2]
        assert tuple(image.get_array()[24, 32]) == ((255, 0, 0) if left + right < 10 else (0, 0, 255))

    for line, mask, bar in zip(mask_panel.get_lines(), masks, predicted.patches, strict=True):
        np.testing.assert_allclose(line.get_xdata(), [0, 2.5, 5, 7.5, 10])
        np.testing.assert_allclose(line.get_ydata(), mask)
        assert to_rgb(line.get_color()) == bar.get_facecolor()[:3]
    assert [(bar.get_x(), bar.get_width()) for bar in predicted.patches] == [(1.0, 3.0), (3.0, 6.0)]
    assert [(bar.get_x(), bar.get_width()) for bar in true.patches] == [(2.0, 3.0)]
    assert [text.get_text() for text in predicted.texts] == ["1  One.  (0.25)", "2  Two.  (gain 1.50)"]
    figure.savefig(tmp_path / "events.png")
    assert (tmp_path / "events.png").read_bytes().startswith(b"\x89PNG")


def test_sentences_stay_inside_the_picture_and_apart(plot):
    sentence = "A man costs $5 and $6, walks across the wide open field and then turns around to wave at his friends. "
    times = [(0, 10), (0, 0.1), (9.9, 10), (4.9, 5), (5, 5.1), (2, 7), (3, 9)]
    events = [{"start": a, "end": b, "text": (1 + i % 3) * sentence, "score": 0.5} for i, (a, b) in enumerate(times)]
    figure = plot(events)
    axes = figure.axes[-1]
    figure.draw_without_rendering()
    panel, page = axes.get_window_extent(), figure.bbox
    boxes = [text.get_window_extent() for text in axes.texts]
    for i, box in enumerate(boxes):
        assert panel.x1 <= box.x0 and box.x1 <= page.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
        assert not any(box.overlaps(other) for other in [*boxes[:i], *boxes[i + 1 :]])
    # Each sentence begins at the height of its bar.
    for box, bar in zip(boxes, axes.patches, strict=True):
        assert box.y0 < bar.get_window_extent().y0 < bar.get_window_extent().y1 < box.y1 + 2


def test_events_with_one_span_are_told_apart_and_missed_ones_marked(plot):
    events = [{"start": 1, "end": 5, "text": text} for text in ("One.", "Two.")] + [
        {"start": 5, "end": 9, "text": "x"}
    ]
    references = [{"start": 1, "end": 6, "text": "Found."}, {"start": 0, "end": 1.2, "text": "Not found."}]
    figure = plot(events, np.ones((3, 5)), references=references)
    _, masks, predicted, true = figure.axes
    assert [text.get_text() for text in predicted.texts] == ["1  One.", "2  Two.  (same span as 1)", "3  x"]
    assert [line.get_linestyle() for line in masks.get_lines()] == ["-", "--", "-"]
    assert [text.get_text() for text in true.texts] == ["1  Found.", "2  Not found.  (missed)"]
    assert true.patches[0].get_facecolor() != true.patches[1].get_facecolor()


def test_plot_of_nothing_and_wrong_masks(plot):
    assert len(plot([]).axes) == 2
    with pytest.raises(ValueError, match=r"masks of shape \(1, T\), one per event, found \(2, 5\)"):
        plot([{"start": 0, "end": 1, "text": "a"}], np.ones((2, 5)))


def test_words_are_drawn_on_their_frames():
    video = np.zeros((8, 40, 60, 3), dtype=np.uint8)
    video[:, :20, 30:] = 255
    boxes = [{"time": float(t), "box": [0.5, 0.0, 1.0, 0.5], "score": 0.2} for t in range(7)]
    words = [
        {
            "text": "cat",
            "boxes": boxes,
            "heat": {"time": 1.0, "box": [0.25, 0, 1, 1], "values": [[0.0, 1.0], [0.0, 0.5]]},
        },
        {"text": "$5", "boxes": boxes[3:4], "heat": {"time": 3.0, "box": [0, 0, 1, 1], "values": [[1.0]]}},
    ]
    event = {"start": 0, "end": 7, "text": "A cat has $5.", "words": words}
    figure = plot_words(video, event, fps=1)
    figure.savefig(io.BytesIO())
    rows = [figure.axes[:5], figure.axes[5:]]
    assert [row[0].get_ylabel() for row in rows] == ["cat", "$5"]
    # The five frames nearest to the best one, in order; the heat lies on that one, over what CLIP saw.
    assert [axes.get_title().split(" s")[0] for axes in rows[0]] == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    assert [len(axes.images) for axes in rows[0]] == [1, 2, 1, 1, 1]
    assert rows[0][1].images[1].get_extent() == [0.25, 1, 1, 0]
    assert [len(axes.images) for axes in rows[1]] == [2, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="grounding=True, found none"):
        plot_words(video, {"text": "A cat.", "words": []}, fps=1)
