"""Two ways of asking an LLM many short questions: transformers in this process, or a server with OpenAI's interface.

Both yield answers in any order as requests or batches finish, and give every request its own seed.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; the defaults are the paper's (temperature, length) and Qwen3's for non-thinking mode."""

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20  # 0: no limit
    max_new_tokens: int = 50


@dataclass(frozen=True)
class Request:
    """A question: chat messages, and the seed that its sampling depends on."""

    name: str
    messages: list[dict]
    seed: int


@dataclass(frozen=True)
class Answer:
    """The answer to the request of that name; `complete` is False where the length limit cut it off."""

    name: str
    text: str
    complete: bool


@dataclass(eq=False)
class SeededChoice(LogitsProcessor):
    """Leaves each row the one token that its own seed draws, so that greedy decoding samples.

    Gumbel-max: argmax(log p + g) is a draw from p, for g made by hashing (seed, place in the answer, token). A random
    state shared by the batch would make a row's text depend on the other rows.

    Args:
        seeds: Of shape `(batch_size,)`.
        prompt_length: Tokens of each prompt, padding included.
        top_k: Number of tokens that the processors before this one leave at most.
    """

    seeds: Tensor
    prompt_length: int
    top_k: int

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept, tokens = scores.topk(self.top_k)
        drawn_by = (self.seeds * 1_000_003 + input_ids.shape[1] - self.prompt_length) % 2**31
        bits = drawn_by[:, None] * 0x9E3779B1 + tokens
        for _ in range(2):
            bits = ((bits >> 16) ^ bits) * 0x45D9F3B & 0xFFFFFFFF
        # 23 bits: what float32 holds without reaching 0 or 1.
        uniform = ((((bits >> 16) ^ bits) >> 9).float() + 0.5) / 2**23
        choice = (kept.float() - torch.log(-torch.log(uniform))).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.gather(1, choice), 0.0)


class TransformersEngine:
    """Answers with transformers in this process, in batches of prompts of about the same length, the longest first.

    Sampled text depends on the request's seed and its prompt alone, not on the other requests of the batch, as far as
    the logits do not: kernels may round differently for other batch sizes, which shows only where two tokens are all
    but equally likely.

    Args:
        llm, revision: A causal language model with a chat template: a folder, or name and commit on the Hub.
        sampling: Sampling settings; those of the model's own generation config do not count.
        concurrency: Number of requests in a batch.
    """

    def __init__(self, llm: str, revision: str | None, sampling: Sampling, concurrency: int = 256) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(llm, revision=revision, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(llm, revision=revision, dtype="auto", device_map="auto")
        eos = self.model.generation_config.eos_token_id
        self.eos_token_ids = eos if isinstance(eos, list) else [eos]
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token_id = self.eos_token_ids[0]
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.eos_token_ids,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.sampling = sampling
        self.concurrency = concurrency

    def answers(self, requests: list[Request]) -> Iterator[Answer]:
        """Yields the answers, batch by batch.

        Raises:
            RuntimeError: a batch does not fit the memory.
        """
        longest_first = sorted(requests, key=lambda r: -sum(len(message["content"]) for message in r.messages))
        for start in range(0, len(requests), self.concurrency):
            yield from self._answer_batch(longest_first[start : start + self.concurrency])

    def _answer_batch(self, requests: list[Request]) -> Iterator[Answer]:
        template = {"add_generation_prompt": True, "enable_thinking": False, "padding": True, "return_dict": True}
        chats = [request.messages for request in requests]
        inputs = self.tokenizer.apply_chat_template(chats, **template, return_tensors="pt").to(self.model.device)
        length = inputs["input_ids"].shape[1]
        seeds = torch.tensor([request.seed for request in requests], device=self.model.device)
        try:
            outputs = self.model.generate(**inputs, logits_processor=self._processors(seeds, length))
        except torch.OutOfMemoryError as error:
            raise RuntimeError(f"{len(requests)} requests at once need too much: lower --concurrency") from error
        for request, tokens in zip(requests, outputs[:, length:].tolist(), strict=True):
            end = next((i for i, token in enumerate(tokens) if token in self.eos_token_ids), None)
            yield Answer(request.name, self.tokenizer.decode(tokens[:end], skip_special_tokens=True), end is not None)

    def _processors(self, seeds: Tensor, prompt_length: int) -> LogitsProcessorList:
        if not self.sampling.temperature:
            return LogitsProcessorList()
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        top_k = min(self.sampling.top_k or vocabulary, vocabulary)
        warpers = TemperatureLogitsWarper(self.sampling.temperature), TopKLogitsWarper(top_k)
        choice = TopPLogitsWarper(self.sampling.top_p), SeededChoice(seeds, prompt_length, top_k)
        return LogitsProcessorList([*warpers, *choice])


class ServerEngine:
    """Answers with a server that has OpenAI's chat interface: vLLM, SGLang, `transformers serve`, ...

    Its key is read from the environment variable OPENAI_API_KEY (servers of one's own need none). Requests carry their
    seed; whether the same seed gives the same text is the server's matter: vLLM keeps a random state for each
    request, `transformers serve` a single one, so that only `concurrency=1` repeats there.

    Args:
        base_url: Such as `http://localhost:8000/v1`.
        sampling: Sampling settings; `top_k` 0 is not sent.
        concurrency: Number of requests under way at once.
        extra_body: Further fields of each request, such as the chat template's settings.
    """

    def __init__(self, base_url: str, llm: str, sampling: Sampling, concurrency: int, extra_body: dict) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=5)
        self.concurrency = concurrency
        self.settings = {
            "model": llm,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "extra_body": {**extra_body, **({"top_k": sampling.top_k} if sampling.top_k else {})},
        }

    def answers(self, requests: list[Request]) -> Iterator[Answer]:
        """Yields the answers as they finish.

        Raises:
            RuntimeError: the server is not there, or refuses a request; transient faults are tried again first.
        """
        from openai import APIStatusError, OpenAIError

        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for future in as_completed([pool.submit(self._answer, request) for request in requests]):
                    yield future.result()
            except APIStatusError as error:
                raise RuntimeError(
                    f"{self.client.base_url} refused a request ({error.status_code}): {error.response.text[:500]}\n"
                    "A field it does not know can be left out: --top_k 0, --extra_body '{}'"
                ) from error
            except OpenAIError as error:
                raise RuntimeError(f"{self.client.base_url} gave no answer: {error}") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, request: Request) -> Answer:
        completion = self.client.chat.completions.create(messages=request.messages, seed=request.seed, **self.settings)
        choice = completion.choices[0]
        return Answer(request.name, choice.message.content or "", choice.finish_reason == "stop")
