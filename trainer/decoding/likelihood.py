"""Answering by likelihood: how probable is each of a list of answers, as the model would write it?

The answers hang on their prompt as a tree of tokens: what they begin with alike is computed once, and one forward
after the prompt gives every next-token distribution that any of them needs. Nothing is parsed, so nothing is invalid.
The tree is one for all prompts (labels), or each prompt's own (choices).
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
def log_likelihoods(
    model, examples: Sequence[Example], tries: Sequence[Trie], *, per_token: bool = False
) -> torch.Tensor:
    """(examples, most answers) fp64: log p(answer and its end | prompt), an example's in the order of its trie's
    `answers` and -inf behind them. `per_token`: the mean over these tokens instead of their sum, so that long answers
    are at no disadvantage."""
    model.train(False)
    prompts = Prompts(model, examples)
    if not prompts.whole:
        message = f"{model.name} attends to a window only, which a tree of answers does not fit into; use generate"
        raise problem("evaluate.decode.method", message)
    tokens, parents = _laid(tries)
    gained = torch.zeros(tokens.shape, dtype=torch.float64)  # log p of a node's token after its parent
    ended = torch.zeros(tokens.shape, dtype=torch.float64)  # log p of the end after a node
    for first, scores in _distributions(model, prompts, tokens, parents):
        count = scores.shape[1]
        here = (parents >= first) & (parents < first + count)
        row, _ = here.nonzero(as_tuple=True)
        gained[here] = scores[row, parents[here] - first, tokens[here]].double().cpu()
        ended[:, first : first + count] = scores[..., model.tokens.end].double().cpu()
    written, each = torch.zeros_like(gained), torch.arange(len(tries))  # log p of the path to a node
    for node in range(1, tokens.shape[1]):
        written[:, node] = written[each, parents[:, node]] + gained[:, node]
    found = torch.full((len(tries), max(len(trie.answers) for trie in tries)), -torch.inf, dtype=torch.float64)
    for n, trie in enumerate(tries):
        lengths = [trie.depths[leaf] + 1 if per_token else 1 for leaf in trie.leaves]
        found[n, : len(lengths)] = (written + ended)[n, trie.leaves] / torch.tensor(lengths)
    return found


def _laid(tries: Sequence[Trie]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token and parent of every node, each (rows, most nodes); nodes that fill a row up follow the prompt, and nothing
    is read off them."""
    tokens, parents = torch.zeros(2, len(tries), max(len(trie.tokens) for trie in tries), dtype=torch.long)
    for n, trie in enumerate(tries):
        tokens[n, : len(trie.tokens)] = torch.tensor(trie.tokens)
        parents[n, : len(trie.tokens)] = torch.tensor(trie.parents)
    return tokens, parents


def _distributions(
    model, prompts: Prompts, tokens: torch.Tensor, parents: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first node, (rows, nodes, vocabulary) log-probabilities of what follows that and the nodes behind it)."""
    first = prompts.next()
    yield 0, first[:, None]
    states = prompts.branch(tokens[:, 1:], parents[:, 1:] - 1)
    step = max(1, LOGITS // first.numel())
    for start in range(0, states.shape[1], step):
        yield 1 + start, model.logits(states[:, start : start + step]).log_softmax(-1)
