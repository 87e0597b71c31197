"""Answering by likelihood: how probable is each of a closed set of answers, as the model would write it?

The answers hang on their prompt as a tree of tokens: what they begin with alike is computed once, and one forward
after the prompt gives every next-token distribution that any of them needs. Nothing is parsed, so nothing is invalid.
"""

from collections.abc import Iterator, Sequence

import torch

from trainer.decoding.constrain import Trie
from trainer.decoding.prompts import Prompts
from trainer.fields import problem
from trainer.views import Example

LOGITS = 1 << 26
"""Most logits that are held at once (256 MiB in fp32)."""


@torch.inference_mode()
def log_likelihoods(model, examples: Sequence[Example], trie: Trie, *, per_token: bool = False) -> torch.Tensor:
    """(examples, answers) fp64, answers in the order of `trie.answers`: log p(answer and its end | prompt).
    `per_token`: the mean over these tokens instead of their sum, so that long answers are at no disadvantage."""
    model.train(False)
    prompts = Prompts(model, examples)
    if not prompts.whole:
        message = f"{model.name} attends to a window only, which a tree of answers does not fit into; use generate"
        raise problem("evaluate.decode.method", message)
    end = model.tokens.end
    written = torch.zeros(prompts.rows, len(trie.children), dtype=torch.float64)  # log p of the path to a node
    found = torch.zeros(prompts.rows, len(trie.answers), dtype=torch.float64)
    for node, scores in _distributions(model, prompts, trie):
        for token, child in trie.children[node].items():
            written[:, child] = written[:, node] + scores[:, token].double().cpu()
        if (name := trie.names[node]) is not None:
            total = written[:, node] + scores[:, end].double().cpu()
            found[:, trie.answers.index(name)] = total / (trie.depths[node] + 1 if per_token else 1)
    return found


def _distributions(model, prompts: Prompts, trie: Trie) -> Iterator[tuple[int, torch.Tensor]]:
    """Each node, parents first, with (rows, vocabulary) log-probabilities of what follows it."""
    first = prompts.next()
    yield 0, first
    states = prompts.branch(trie.tokens[1:], [parent - 1 for parent in trie.parents[1:]])
    step = max(1, LOGITS // first.numel())
    for start in range(0, states.shape[1], step):
        scores = model.logits(states[:, start : start + step]).log_softmax(-1)
        for k in range(scores.shape[1]):
            yield 1 + start + k, scores[:, k]
