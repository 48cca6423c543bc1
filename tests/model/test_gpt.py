"""The transformer is GPT-2: same logits from the same weights, same parameter count, GPT-2's initialisation."""

from __future__ import annotations

import math

import pytest
import torch

from dist_trainer.config.run import ModelConfig
from dist_trainer.model.checkpointing import Checkpointing
from dist_trainer.model.gpt import GPT, Attention, Block
from dist_trainer.model.size import num_parameters, num_stored_parameters

TINY = ModelConfig(num_layers=3, hidden_size=48, num_heads=4, vocab_size=211, context_length=32)
GPT2_SIZES = {
    "small": (
        ModelConfig(num_layers=12, hidden_size=768, num_heads=12, vocab_size=50257, context_length=1024),
        124_439_808,
    ),
    "medium": (
        ModelConfig(num_layers=24, hidden_size=1024, num_heads=16, vocab_size=50257, context_length=1024),
        354_823_168,
    ),
    "large": (
        ModelConfig(num_layers=36, hidden_size=1280, num_heads=20, vocab_size=50257, context_length=1024),
        774_030_080,
    ),
}


def copy_from_transformers(model: GPT, source: torch.nn.Module) -> None:
    """transformers keeps GPT-2's projections as [in, out]; torch's Linear is [out, in]."""
    state = source.state_dict()
    ours = {
        "token_embedding.weight": state["transformer.wte.weight"],
        "position_embedding.weight": state["transformer.wpe.weight"],
        "final_norm.weight": state["transformer.ln_f.weight"],
        "final_norm.bias": state["transformer.ln_f.bias"],
    }
    names = {
        "attention_norm": "ln_1",
        "feed_forward_norm": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.projection": "attn.c_proj",
        "feed_forward.expansion": "mlp.c_fc",
        "feed_forward.projection": "mlp.c_proj",
    }
    for layer in range(model.config.num_layers):
        for our_name, their_name in names.items():
            weight = state[f"transformer.h.{layer}.{their_name}.weight"]
            ours[f"blocks.{layer}.{our_name}.weight"] = weight.T if weight.dim() == 2 else weight
            ours[f"blocks.{layer}.{our_name}.bias"] = state[f"transformer.h.{layer}.{their_name}.bias"]
    model.load_state_dict(ours)


@pytest.fixture(scope="module")
def gpt2_pair() -> tuple[GPT, torch.nn.Module]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=3, n_embd=48, n_head=4, vocab_size=211, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    source = transformers.GPT2LMHeadModel(config)
    for parameter in source.parameters():
        parameter.data.normal_(std=0.2)
    model = GPT(TINY)
    copy_from_transformers(model, source)
    return model.eval(), source.eval()


def test_logits_are_those_of_transformers_gpt2(gpt2_pair: tuple[GPT, torch.nn.Module]) -> None:
    model, source = gpt2_pair
    tokens = torch.randint(0, 211, (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), source(tokens).logits, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_those_of_transformers_gpt2(gpt2_pair: tuple[GPT, torch.nn.Module]) -> None:
    model, source = gpt2_pair
    tokens = torch.randint(0, 211, (2, 33))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    theirs = torch.nn.functional.cross_entropy(source(tokens[:, :-1]).logits.view(-1, 211), tokens[:, 1:].reshape(-1))
    loss.backward()
    theirs.backward()
    torch.testing.assert_close(loss, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.token_embedding.weight.grad, source.transformer.wte.weight.grad, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("size", GPT2_SIZES)
def test_parameter_count_is_that_of_gpt2(size: str) -> None:
    config, expected = GPT2_SIZES[size]
    with torch.device("meta"):
        model = GPT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert num_parameters(config) == expected


def test_padding_is_no_part_of_the_model() -> None:
    """The same weights, losses and parameters to count; the padding stays zero under a decaying optimizer."""
    models = []
    for pads in (False, True):
        torch.manual_seed(0)
        models.append(GPT(TINY.model_copy(update={"pad_vocab": pads})))
    plain, padded = models
    config = padded.config
    assert padded.token_embedding.weight.shape == (256, 48)
    assert num_parameters(config) == num_parameters(TINY) == sum(p.numel() for p in plain.parameters())
    assert num_stored_parameters(config) == sum(p.numel() for p in padded.parameters())
    tokens = torch.randint(TINY.vocab_size, (2, 33))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    assert padded(inputs).shape == plain(inputs).shape == (2, 32, TINY.vocab_size)
    losses = []
    for model in models:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        losses.append([])
        for _ in range(3):
            loss = model(inputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert not padded.token_embedding.weight[TINY.vocab_size :].any()


def test_residual_projections_start_smaller_by_the_root_of_their_number() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(num_layers=8, hidden_size=128, num_heads=4, vocab_size=500, context_length=16))
    for block in model.blocks:
        for projection in (block.attention.projection, block.feed_forward.projection):
            assert projection.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.attention.qkv.bias.abs().max().item() == 0.0
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_first_loss_is_near_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 211, (4, 33))
    assert GPT(TINY)(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(211), abs=0.1)


def test_a_token_does_not_see_the_tokens_after_it(gpt2_pair: tuple[GPT, torch.nn.Module]) -> None:
    model, _ = gpt2_pair
    tokens = torch.randint(0, 211, (1, 32))
    changed = tokens.clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % 211
    with torch.no_grad():
        assert torch.equal(model(tokens)[0, :20], model(changed)[0, :20])


def test_only_matrices_decay() -> None:
    model = GPT(TINY)
    *matrices, others = model.parameter_groups()
    decay = [parameter for group in matrices for parameter in group["params"]]
    assert all(parameter.dim() >= 2 for parameter in decay)
    assert all(parameter.dim() < 2 for parameter in others["params"])
    assert others["weight_decay"] == 0.0
    assert len(decay) + len(others["params"]) == len(list(model.parameters()))


def test_no_group_of_matrices_is_much_larger_than_it_need_be() -> None:
    model = GPT(TINY)
    *matrices, _ = model.parameter_groups()
    total = sum(parameter.numel() for parameter in model.parameters())
    largest = max(parameter.numel() for parameter in model.parameters())
    assert all(sum(p.numel() for p in group["params"]) <= total / 8 + largest for group in matrices)


def saved_bytes(model: GPT, tokens: torch.Tensor) -> int:
    """Bytes that autograd keeps between the forward and the backward pass, each storage once."""
    storages: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden_states(tokens)
    total = sum(storages.values())
    del hidden
    return total


@pytest.mark.parametrize("checkpointing", [Checkpointing(), Checkpointing(num_checkpoints=2), Checkpointing(cpu=True)])
def test_checkpointing_keeps_fewer_activations_and_gives_the_same_gradients(checkpointing: Checkpointing) -> None:
    torch.manual_seed(0)
    plain = GPT(TINY)
    lean = GPT(TINY, checkpointing)
    lean.load_state_dict(plain.state_dict())
    tokens = torch.randint(0, 211, (2, 33))
    assert saved_bytes(lean, tokens[:, :-1]) < 0.4 * saved_bytes(plain, tokens[:, :-1])
    for model in (plain, lean):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_evaluation_drops_nothing_anywhere() -> None:
    torch.manual_seed(0)
    model = GPT(TINY.model_copy(update={"dropout": 0.5}))
    without = GPT(TINY.model_copy(update={"dropout": 0.0}))
    without.load_state_dict(model.state_dict())
    tokens = torch.randint(TINY.vocab_size, (2, TINY.context_length))
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens), without.eval()(tokens))
        assert not torch.equal(model.train()(tokens), without(tokens))


@pytest.mark.parametrize("part", ["embedding", "attention", "residual"])
def test_training_drops_in_each_place(part: str) -> None:
    torch.manual_seed(0)
    model = GPT(TINY.model_copy(update={"dropout": 0.5})).train()
    for module in model.modules():
        if part != "attention" and isinstance(module, Attention):
            module.dropout = 0.0
        if part != "residual" and isinstance(module, Block):
            module.dropout.p = 0.0
    if part != "embedding":
        model.dropout.p = 0.0
    tokens = torch.randint(TINY.vocab_size, (2, TINY.context_length))
    with torch.no_grad():
        assert not torch.equal(model(tokens), model(tokens))


def test_checkpointing_draws_the_same_dropout_again() -> None:
    config = TINY.model_copy(update={"dropout": 0.5})
    torch.manual_seed(0)
    plain = GPT(config)
    lean = GPT(config, Checkpointing())
    lean.load_state_dict(plain.state_dict())
    tokens = torch.randint(0, 211, (2, 33))
    for model in (plain, lean):
        torch.manual_seed(7)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert torch.equal(plain.token_embedding.weight.grad, lean.token_embedding.weight.grad)
