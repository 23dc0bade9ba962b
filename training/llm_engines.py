"""Two ways of asking an LLM many short questions: transformers in this process, or a server with OpenAI's interface.

Both answer requests as they finish, in any order, and give every request its own seed.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

Message = dict[str, str]


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
    messages: list[Message]
    seed: int


@dataclass(frozen=True)
class Answer:
    """The answer to the request of that name; `complete` is False where the length limit cut it off."""

    name: str
    text: str
    complete: bool


class TransformersEngine:
    """Answers with transformers' continuous batching, in this process.

    Sampled text depends on the request's seed and its prompt alone, not on the other requests of the batch, as far as
    the logits do not: kernels may round differently for other batch sizes, which shows only where two tokens are all
    but equally likely.

    Args:
        llm: Name or folder of a causal language model with a chat template.
        revision: Branch, tag or commit of a model on the Hub.
        sampling: Sampling settings.
        concurrency: Largest number of requests in a batch.
    """

    def __init__(self, llm: str, revision: str | None, sampling: Sampling, concurrency: int = 256) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

        self.tokenizer = AutoTokenizer.from_pretrained(llm, revision=revision)
        self.model = AutoModelForCausalLM.from_pretrained(llm, revision=revision, dtype="auto", device_map="auto")
        sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        self.generation_config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.model.generation_config.eos_token_id,
            pad_token_id=self.model.generation_config.pad_token_id,
            **({"do_sample": True, **sampled} if sampling.temperature else {"do_sample": False}),
        )
        # On a CPU the cache's size is not inferred well: it would fill the memory.
        cache = {"num_blocks": 64, "max_batch_tokens": 2048} if self.model.device.type == "cpu" else {}
        self.batching = ContinuousBatchingConfig(
            per_request_processors=True, max_requests_per_batch=concurrency, **cache
        )
        self.concurrency = concurrency
        eos = self.generation_config.eos_token_id
        self.eos_token_ids = set(eos if isinstance(eos, list) else [eos])

    def answers(self, requests: list[Request]) -> Iterator[Answer]:
        """Yields the answers as they finish."""
        # Not `generate_batch`, which is the same for requests without settings of their own, such as seeds.
        manager = self.model.init_continuous_batching(self.generation_config, self.batching)
        if self.generation_config.do_sample:
            _seed_by_request(manager.logit_processor, self.generation_config.top_k)
        manager.warmup()
        manager.start()
        try:
            waiting, asked = iter(requests), 0
            for answered in range(len(requests)):
                # Twice the batch, so that the next requests are there when some finish.
                while asked < min(len(requests), answered + 2 * self.concurrency):
                    self._ask(manager, next(waiting))
                    asked += 1
                yield self._next_answer(manager)
        finally:
            manager.stop(hard_stop=True)
            manager.destroy()

    def _ask(self, manager, request: Request) -> None:
        prompt = self.tokenizer.apply_chat_template(
            request.messages, add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        seed = {"seed": request.seed} if self.generation_config.do_sample else {}
        manager.add_request(prompt, request_id=request.name, **seed)

    def _next_answer(self, manager) -> Answer:
        result = None
        while result is None or not result.is_finished():
            if not manager.is_running():
                raise RuntimeError("the LLM stopped: see the message above")
            result = manager.get_result(timeout=1)
        if result.error is not None:
            raise RuntimeError(f"the LLM failed on {result.request_id}: {result.error}")
        text = self.tokenizer.decode(result.generated_tokens, skip_special_tokens=True)
        complete = bool(self.eos_token_ids.intersection(result.generated_tokens[-1:]))
        return Answer(result.request_id, text, complete)


def _seed_by_request(processors, top_k: int) -> None:
    """Appends a step to continuous batching's logits processors that draws the token by the request's own seed.

    Continuous batching draws from one random state for the whole batch: a request's text would depend on the others.
    """
    import torch
    from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

    class SeededChoice(ContinuousBatchingLogitsProcessor):
        """Gumbel-max sampling: argmax(log p + g) is a draw from p, for g made by hashing (seed, position, token)."""

        supported_kwargs = {"seed": int}
        ignored_kwargs = ()

        def fill_defaults(self, int32_tensor):
            int32_tensor.zero_()

        def prepare_tensor_args(self, requests_with_new_token):
            states = [request.state for request in requests_with_new_token]
            # After scheduling, the offset is the position of the token to come, whatever the batch.
            mixed = [state.logit_processor_kwargs["seed"] * 1_000_003 + state.position_offset for state in states]
            return torch.tensor([value % 2**31 for value in mixed], dtype=torch.int32)

        def __call__(self, scores, tensor_arg):
            kept, tokens = scores.topk(min(top_k, scores.shape[1]) if top_k else scores.shape[1], dim=-1)
            bits = tensor_arg[: len(scores), None].long() * 0x9E3779B1 + tokens
            for _ in range(2):
                bits = ((bits >> 16) ^ bits) * 0x45D9F3B & 0xFFFFFFFF
            uniform = (((bits >> 16) ^ bits).double() + 0.5) / 2**32
            choice = (kept - torch.log(-torch.log(uniform))).argmax(-1, keepdim=True)
            return torch.full_like(scores, -torch.inf).scatter(1, tokens.gather(1, choice), 0.0)

    processors.logits_processor.append(SeededChoice())
    processors.tensors_required += 1
    processors.supported_keys["seed"] = int
    processors.do_processing = True


class ServerEngine:
    """Answers with a server that has OpenAI's chat interface: vLLM, SGLang, `transformers serve`, ...

    Its key is read from the environment variable OPENAI_API_KEY (servers of one's own need none). Requests carry their
    seed; whether the same seed gives the same text is the server's matter: vLLM keeps a random state for each
    request, `transformers serve` a single one, so that only `concurrency=1` repeats there.

    Args:
        base_url: Such as `http://localhost:8000/v1`.
        llm: Name of the model on that server.
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
