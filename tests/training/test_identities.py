"""The update's gradient, through a real model and the real batch code: identities, hand-worked values, an oracle."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learning_rollouts import (
    BATCH,
    END,
    MAX_TOKENS,
    PADDED_VOCAB_SIZE,
    SUPPORT,
    UPDATE,
    VOCAB_SIZE,
    GradientSpy,
    completion,
    flat,
    group,
    random_groups,
    relative_error,
    small_policy,
    weights_of,
)

from nsr.algorithms import surrogates as loss
from nsr.models.sampling_mask import Support
from nsr.training.batch import build_batch, split_updates
from nsr.training.log_probs import can_pack, policy_log_probs
from nsr.training.optimizer import build_optimizer
from nsr.training.spikes import NonFiniteUpdate
from nsr.training.step import recompute_activations, update

LOSS_TYPES = ["standard", "length_normalized", "token_mean"]
GROUPS = random_groups()


def gradient(model, weights_PG, groups=GROUPS, support=SUPPORT, **settings):
    """Gradient of the loss before clipping, as `update` makes it, and the metrics."""
    batch = build_batch(groups, weights_PG, **{**BATCH, **{k: v for k, v in settings.items() if k in BATCH}})
    spy = GradientSpy(model)
    chosen = {**UPDATE, **{k: v for k, v in settings.items() if k in UPDATE}}
    metrics = update(model, support, spy, [batch], **chosen)
    return spy.steps[0], metrics


def objective_by_loops(
    model, groups, weights_PG, loss_type, temperature, old=None, clip_range=0.2, normalize_over="all"
):
    """The objective of DESIGN written out with nothing of nsr's: a sequence at a time, a token at a time."""
    total, sequences, tokens = torch.zeros((), dtype=torch.float64), 0, 0
    old = iter(old) if old is not None else None
    for one, weights_G in zip(groups, weights_PG, strict=True):
        for sample, weight in zip(one.completions, weights_G, strict=True):
            if normalize_over == "kept" and weight == 0.0:
                continue
            sequences, tokens = sequences + 1, tokens + len(sample.token_ids)
            log_probs = log_probs_by_loops(model, one.prompt_ids, sample.token_ids, temperature)
            if old is None:
                terms = [weight * value for value in log_probs]
            else:
                ratios = [torch.exp(value - before) for value, before in zip(log_probs, next(old), strict=True)]
                terms = [min(r * weight, r.clamp(1 - clip_range, 1 + clip_range) * weight) for r in ratios]
            added = sum(terms)
            total = (
                total
                + {
                    "standard": added / len(terms),
                    "length_normalized": added / MAX_TOKENS,
                    "token_mean": added,
                }[loss_type]
            )
    return total / (tokens if loss_type == "token_mean" else sequences)


def log_probs_by_loops(model, prompt_ids, token_ids, temperature):
    logits_TV = model(input_ids=torch.tensor([[*prompt_ids, *token_ids]])).logits[0].double() / temperature
    log_probs = []
    for index, token_id in enumerate(token_ids):
        allowed = [i for i in range(VOCAB_SIZE) if not (i == END and index < SUPPORT.min_tokens)]
        logits_V = logits_TV[len(prompt_ids) - 1 + index]
        log_probs.append(logits_V[token_id] - torch.logsumexp(logits_V[allowed], dim=0))
    return log_probs


def gradient_by_loops(model, groups, weights_PG, loss_type="standard", **settings):
    model.zero_grad()
    (-objective_by_loops(model, groups, weights_PG, loss_type, UPDATE["temperature"], **settings)).backward()
    return flat({name: weight.grad for name, weight in model.named_parameters()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("exact", [False, True])
def test_gradients_of_the_objectives_add_up(loss_type, dtype, exact):
    model = small_policy(dtype)
    settings = {"loss_type": loss_type, "grad_acc_steps": 4, "exact": exact}
    of = {
        name: flat(gradient(model, weights_of(name, GROUPS, advantage="none"), **settings)[0])
        for name in ("PSR", "NSR", "W_REINFORCE", "RLVR")
    }
    assert relative_error(of["W_REINFORCE"], 0.1 * of["PSR"] + of["NSR"]) < 1e-5
    assert relative_error(of["RLVR"], of["PSR"] + of["NSR"]) < 1e-5  # RLVR without advantage is the raw +1/-1
    assert relative_error(of["NSR"], of["RLVR"]) > 0.1  # and they are not all the same


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("normalize_over", ["all", "kept"])
@pytest.mark.parametrize("name", ["NSR", "RLVR"])
@pytest.mark.parametrize("exact", [False, True])
def test_the_gradient_equals_reinforce_written_out_in_loops(name, normalize_over, loss_type, exact):
    model = small_policy(torch.float64)
    weights_PG = weights_of(name, GROUPS)
    settings = {"loss_type": loss_type, "normalize_over": normalize_over, "grad_acc_steps": 4, "exact": exact}
    actual, metrics = gradient(model, weights_PG, **settings)
    expected = gradient_by_loops(model, GROUPS, weights_PG, loss_type, normalize_over=normalize_over)
    assert relative_error(flat(actual), expected) < 1e-5
    assert metrics["samples_kept"] == np.count_nonzero(weights_PG)


def test_with_one_update_rho_is_exactly_one():
    weights_PG = weights_of("NSR", GROUPS)
    metrics = gradient(small_policy(), weights_PG)[1]
    # where rho is 1 a "standard" loss is minus the mean weight: the share of wrong samples, to the last bit
    assert metrics["loss"] == pytest.approx(np.mean(weights_PG == -1.0), abs=1e-6)
    assert metrics["clip_fraction"] == 0.0
    with_tight_clip, loose = (gradient(small_policy(), weights_PG, clip_range=c)[0] for c in (1e-7, 0.9))
    assert torch.equal(flat(with_tight_clip), flat(loose))


# ---------------------------------------------------------------- by hand


class Bigram(torch.nn.Module):
    """A language model that is a table: the logits of the next token are a row, chosen by the last one."""

    device = torch.device("cpu")

    def __init__(self, rows):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, input_ids, logits_to_keep, **_):
        return SimpleNamespace(logits=self.table[input_ids][:, logits_to_keep])


LN2 = math.log(2)
# After token 0: (1/3, 1/3, 1/3). After token 1: (1/2, 1/4, 1/4). After token 2: whatever, nothing is predicted from it.
TABLE = [[0.0, 0.0, 0.0], [LN2, 0.0, 0.0], [5.0, -3.0, 1.0]]
# One puzzle with the prompt (0). A is right: 1, then 2. B is wrong: 2. What each sample's log-prob asks of the rows:
#   A: row 0 by e1 - p = (-1/3, 2/3, -1/3) and row 1 by e2 - p = (-1/2, -1/4, 3/4)
#   B: row 0 by e2 - p = (-1/3, -1/3, 2/3)
A0, A1, B0 = np.array([-1, 2, -1]) / 3, np.array([-2, -1, 3]) / 4, np.array([-1, -1, 2]) / 3
BIGRAM_GROUPS = [group([0], [completion([1, 2]), completion([2])], right=[1, 0])]
BIGRAM_SUPPORT = Support(vocab_size=3, end_token_ids=(), min_tokens=0)
BIGRAM_GRADIENTS = {
    # the mean of A's two tokens and of B's one, over two samples
    ("PSR", "standard"): (A0 / 4, A1 / 4),
    ("NSR", "standard"): (-B0 / 2, 0 * A1),
    ("RLVR", "standard"): (A0 / 4 - B0 / 2, A1 / 4),  # (1/12, 1/3, -5/12) and (-1/8, -1/16, 3/16)
    ("W_REINFORCE", "standard"): (0.1 * A0 / 4 - B0 / 2, 0.1 * A1 / 4),
    # sums over the longest response, 12, and over two samples
    ("RLVR", "length_normalized"): ((A0 - B0) / 24, A1 / 24),
    # sums over three tokens
    ("RLVR", "token_mean"): ((A0 - B0) / 3, A1 / 3),
}


@pytest.mark.parametrize(("name", "loss_type"), BIGRAM_GRADIENTS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_of_a_bigram_model_worked_out_by_hand(name, loss_type, temperature):
    # at temperature 2 logits twice as large give the same probabilities, and half the gradient
    model = Bigram(np.float32(temperature) * np.float32(TABLE))
    weights_PG = weights_of(name, BIGRAM_GROUPS, advantage="none")
    gradients, _ = gradient(
        model, weights_PG, BIGRAM_GROUPS, BIGRAM_SUPPORT, loss_type=loss_type, temperature=temperature
    )
    ascent = -temperature * gradients["table"].numpy()
    row_0, row_1 = BIGRAM_GRADIENTS[name, loss_type]
    np.testing.assert_allclose(ascent, [row_0, row_1, [0, 0, 0]], atol=1e-6)


def test_the_raw_bigram_gradient_in_plain_numbers():
    gradients, _ = gradient(Bigram(TABLE), np.array([[1.0, -1.0]]), BIGRAM_GROUPS, BIGRAM_SUPPORT, temperature=1.0)
    expected = [[1 / 12, 1 / 3, -5 / 12], [-1 / 8, -1 / 16, 3 / 16], [0, 0, 0]]
    np.testing.assert_allclose(-gradients["table"].numpy(), expected, atol=1e-6)


def test_padded_ids_are_out_of_the_normalization_and_get_no_gradient():
    # a fourth id, padding, with a logit that would take nearly all the probability
    padded = Bigram([[*row, 9.0] for row in TABLE] + [[0.0] * 4])
    gradients, _ = gradient(padded, np.array([[1.0, -1.0]]), BIGRAM_GROUPS, BIGRAM_SUPPORT, temperature=1.0)
    plain, _ = gradient(Bigram(TABLE), np.array([[1.0, -1.0]]), BIGRAM_GROUPS, BIGRAM_SUPPORT, temperature=1.0)
    assert (gradients["table"][:, 3] == 0.0).all()
    torch.testing.assert_close(gradients["table"][:3, :3], plain["table"])


def test_the_end_token_is_out_of_the_first_positions_alone():
    # 2 ends, but not as the first token. The response 1, 2 after the prompt 0: at position 0 over {0, 1}, so that
    # p = (1/2, 1/2, 0) and e1 - p = (-1/2, 1/2, 0); at position 1 over all three, as above.
    support = Support(vocab_size=3, end_token_ids=(2,), min_tokens=1)
    groups = [group([0], [completion([1, 2])], right=[1])]
    gradients, _ = gradient(Bigram(TABLE), np.array([[1.0]]), groups, support, temperature=1.0)
    expected = [[-1 / 4, 1 / 4, 0], A1 / 2, [0, 0, 0]]
    np.testing.assert_allclose(-gradients["table"].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_metrics_of_a_bigram_model_worked_out_by_hand(temperature):
    # log-probs of the three tokens are -ln 3, -2 ln 2 and -ln 3; the sampler's are the same, ln 2 lower, and the same
    sampled = [completion([1, 2], [-math.log(3), -3 * LN2]), completion([2], [-math.log(3)])]
    groups = [group([0], sampled, right=[1, 0])]
    model = Bigram(np.float32(temperature) * np.float32(TABLE))
    _, metrics = gradient(model, np.array([[1.0, -1.0]]), groups, BIGRAM_SUPPORT, temperature=temperature)
    # k3 of a log-ratio of ln 2 is 2 - 1 - ln 2, of 0 it is 0
    assert metrics["kl_to_rollout"] == pytest.approx((1 - LN2) / 3, abs=1e-6)
    # entropies: ln 3, 1.5 bits, ln 3
    assert metrics["entropy_kept"] == pytest.approx((2 * math.log(3) + 1.5 * LN2) / 3, abs=1e-6)
    # one token of three is off by ln 2; the first response is twice as probable as the sampler says: 3^2 / (2 * 5)
    assert metrics["logprob_diff_mean"] == pytest.approx(LN2 / 3, abs=1e-6)
    assert metrics["logprob_diff_max"] == pytest.approx(LN2, abs=1e-6)
    assert metrics["effective_sample_size"] == pytest.approx(0.9, abs=1e-6)
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)
    assert (metrics["samples_kept"], metrics["signal"]) == (2.0, 1.0)


# ---------------------------------------------------------------- what must change nothing


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("grad_acc_steps", [2, 16, 32])
def test_the_cut_into_microbatches_changes_nothing(loss_type, grad_acc_steps):
    # with 32 every row stands alone, without padding: so padding changes nothing either
    model, weights_PG = small_policy(), weights_of("RLVR", GROUPS, advantage="none")
    whole, whole_metrics = gradient(model, weights_PG, loss_type=loss_type, grad_acc_steps=1)
    cut, cut_metrics = gradient(model, weights_PG, loss_type=loss_type, grad_acc_steps=grad_acc_steps)
    assert relative_error(flat(cut), flat(whole)) < 1e-5
    assert cut_metrics == pytest.approx(whole_metrics, abs=1e-6)


def test_microbatches_are_bounded_by_all_rollouts_over_grad_acc_steps():
    sizes = []
    model = small_policy()
    model.register_forward_pre_hook(lambda _, __, inputs: sizes.append(inputs["input_ids"].shape[0]), with_kwargs=True)
    weights_PG = weights_of("NSR", GROUPS)
    gradient(model, weights_PG, grad_acc_steps=4, exact=True)
    assert sum(sizes) == np.count_nonzero(weights_PG) < 32
    assert max(sizes) <= 32 // 4
    assert len(sizes) == math.ceil(sum(sizes) / 8)


@pytest.mark.parametrize("pad_token_id", [0, END, VOCAB_SIZE, PADDED_VOCAB_SIZE - 1])
def test_the_padding_token_changes_nothing(pad_token_id):
    model, weights_PG = small_policy(), weights_of("NSR", GROUPS)
    usual, _ = gradient(model, weights_PG)
    other, metrics = gradient(model, weights_PG, pad_token_id=pad_token_id)
    assert relative_error(flat(other), flat(usual)) < 1e-6
    assert math.isfinite(metrics["entropy_kept"])


def test_rows_of_weight_zero_add_nothing():
    model, weights_PG = small_policy(), weights_of("NSR", GROUPS)
    left_out = build_batch(GROUPS, weights_PG, **BATCH)
    kept_in = build_batch(GROUPS, np.ones_like(weights_PG), **BATCH)
    kept_in = dataclasses.replace(kept_in, weights_B=torch.from_numpy(weights_PG.ravel()).float())
    assert left_out.num_rows < kept_in.num_rows
    assert left_out.denominator == kept_in.denominator
    gradients = []
    for batch in (left_out, kept_in):
        spy = GradientSpy(model)
        update(model, SUPPORT, spy, [batch], **UPDATE)
        gradients.append(flat(spy.steps[0]))
    assert relative_error(gradients[0], gradients[1]) < 1e-6


def test_logits_in_pieces_change_nothing(monkeypatch):
    model, weights_PG = small_policy(), weights_of("NSR", GROUPS)
    whole, whole_metrics = gradient(model, weights_PG)
    monkeypatch.setattr(loss, "PIECE_ELEMENTS", 5 * PADDED_VOCAB_SIZE)
    pieces, pieces_metrics = gradient(model, weights_PG)
    assert relative_error(flat(pieces), flat(whole)) < 1e-6
    assert pieces_metrics == pytest.approx(whole_metrics, abs=1e-6)


def test_dropout_is_off_and_the_model_is_left_in_evaluation_mode():
    weights_PG = weights_of("NSR", GROUPS)
    expected, _ = gradient(small_policy(), weights_PG)
    model = small_policy(attention_dropout=0.5).train()
    actual, _ = gradient(model, weights_PG)
    assert torch.equal(flat(actual), flat(expected))
    assert not any(module.training for module in model.modules())


def test_recomputed_activations_give_the_same_gradient_without_dropout():
    weights_PG = weights_of("NSR", GROUPS)
    expected, _ = gradient(small_policy(), weights_PG)
    model = small_policy(attention_dropout=0.5)
    recompute_activations(model)
    assert can_pack(model)
    calls = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    actual, _ = gradient(model, weights_PG)
    assert len(calls) == 2  # once forward, once again in the backward pass
    assert relative_error(flat(actual), flat(expected)) < 1e-6
    # and the sampler's cache still works
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        assert model(input_ids=torch.tensor([[3, 4]]), use_cache=True).past_key_values.get_seq_length() == 2


def test_padded_ids_of_a_real_model_get_no_gradient_from_the_output_layer():
    model = small_policy(tie_word_embeddings=False)
    gradients, _ = gradient(model, weights_of("NSR", GROUPS))
    output = gradients["lm_head.weight"]
    assert (output[VOCAB_SIZE:] == 0.0).all()
    assert (output[:VOCAB_SIZE].abs().sum(dim=1) > 0).all()


def test_policy_log_probs_equal_a_forward_pass_of_each_sequence_alone():
    model = small_policy()
    batch = build_batch(GROUPS, np.ones((4, 8)), **BATCH)
    log_probs_BT, entropy_BT = policy_log_probs(model, SUPPORT, batch, 0.7)
    samples = [(one.prompt_ids, sample.token_ids) for one in GROUPS for sample in one.completions]
    for row, (prompt_ids, token_ids) in enumerate(samples):
        expected = torch.stack(log_probs_by_loops(model, prompt_ids, token_ids, 0.7)).float()
        torch.testing.assert_close(log_probs_BT[row, batch.response_mask_BT[row]], expected, rtol=0, atol=1e-5)
    assert (log_probs_BT[~batch.response_mask_BT] == 0.0).all()
    assert (entropy_BT[~batch.response_mask_BT] == 0.0).all()
    assert (entropy_BT[batch.response_mask_BT] > 0.0).all()
    assert not entropy_BT.requires_grad


# ---------------------------------------------------------------- several updates, and none


def test_several_updates_take_the_clipped_surrogate_against_the_policy_before_the_first():
    model = small_policy(torch.float64)
    parts = split_updates(GROUPS, weights_of("RLVR", GROUPS, advantage="none"), 2, np.random.default_rng(0))
    batches = [build_batch(part, weights_PG, **BATCH) for part, weights_PG in parts]
    before = copy.deepcopy(model)

    def shift(policy):
        generator = torch.Generator().manual_seed(0)
        for weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))

    spy = GradientSpy(model, change=shift)
    metrics = update(model, SUPPORT, spy, batches, **UPDATE)
    first_groups, first_weights_PG = parts[0]
    assert relative_error(flat(spy.steps[0]), gradient_by_loops(before, first_groups, first_weights_PG)) < 1e-5

    groups, weights_PG = parts[1]
    moved = copy.deepcopy(before)
    with torch.no_grad():
        shift(moved)
        samples = [(one.prompt_ids, sample.token_ids) for one in groups for sample in one.completions]
        old = [log_probs_by_loops(before, prompt, tokens, UPDATE["temperature"]) for prompt, tokens in samples]
    clipped = gradient_by_loops(moved, groups, weights_PG, old=old)
    assert relative_error(flat(spy.steps[1]), clipped) < 1e-5
    # the clip had work to do, and REINFORCE's gradient is another
    assert 0.1 < metrics["clip_fraction"] < 0.5
    assert relative_error(clipped, gradient_by_loops(moved, groups, weights_PG)) > 0.1


def test_the_step_that_is_taken_is_the_optimizers():
    model, twin = small_policy(), small_policy()
    batch = build_batch(GROUPS, weights_of("NSR", GROUPS), **BATCH)
    metrics = update(
        model, SUPPORT, build_optimizer(model, lr=1e-3, kind="adamw"), [batch], **UPDATE, max_grad_norm=0.5
    )
    gradients, _ = gradient(twin, weights_of("NSR", GROUPS))
    assert metrics["grad_norm"] == pytest.approx(float(flat(gradients).norm()), rel=1e-5)
    change = flat({n: p.detach() for n, p in model.named_parameters()}) - flat(
        {n: p.detach() for n, p in small_policy().named_parameters()}
    )
    assert metrics["update_norm"] == pytest.approx(float(change.norm()), rel=1e-5)
    # the first step of AdamW moves each weight by the learning rate against its gradient
    assert float((change.sign() == -flat(gradients).sign()).double().mean()) > 0.95
    assert all(weight.grad is None for weight in model.parameters())


def test_learning_from_mistakes_makes_them_less_likely():
    model = small_policy()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    batch = build_batch(GROUPS, weights_of("NSR", GROUPS), **BATCH)
    mask_BT = batch.response_mask_BT
    before = policy_log_probs(model, SUPPORT, batch, 0.7)[0][mask_BT].mean()
    for _ in range(3):
        update(model, SUPPORT, optimizer, [batch], **UPDATE)
    assert policy_log_probs(model, SUPPORT, batch, 0.7)[0][mask_BT].mean() < before - 0.05


def test_without_signal_no_step_is_taken():
    model = small_policy()
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    update(model, SUPPORT, optimizer, [build_batch(GROUPS, weights_of("NSR", GROUPS), **BATCH)], **UPDATE)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    empty = build_batch(GROUPS, np.zeros((4, 8)), **BATCH)
    assert update(model, SUPPORT, optimizer, [empty, empty], **UPDATE) == {
        "samples_kept": 0.0,
        "signal": 0.0,
        "updates_without_signal": 2.0,
    }
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for index, entry in optimizer.state_dict()["adamw"]["state"].items():
        assert all(torch.equal(value, state["adamw"]["state"][index][name]) for name, value in entry.items())


def test_of_several_mini_batches_one_without_signal_is_passed_over():
    model = small_policy()
    full = build_batch(GROUPS, weights_of("NSR", GROUPS), **BATCH)
    empty = build_batch(GROUPS, np.zeros((4, 8)), **BATCH)
    spy = GradientSpy(model)
    metrics = update(model, SUPPORT, spy, [empty, full], **UPDATE)
    assert len(spy.steps) == 1
    assert metrics["samples_kept"] == full.num_rows


@pytest.mark.parametrize("fault", ["a weight is NaN", "a sampled token is outside the support"])
def test_a_non_finite_update_stops_before_the_step(fault):
    model, groups = small_policy(), GROUPS
    if fault == "a weight is NaN":
        with torch.no_grad():
            model.model.norm.weight[0] = math.nan
    else:
        groups = [group([5], [completion([END, 7, 8])], right=[0])]
    optimizer = build_optimizer(model, lr=1e-3, kind="adamw")
    weights = copy.deepcopy(model.state_dict())
    batch = build_batch(groups, weights_of("NSR", groups), **BATCH)
    with pytest.raises(NonFiniteUpdate, match=r"^The loss is "):
        update(model, SUPPORT, optimizer, [batch], **UPDATE)
    assert optimizer.state_dict()["adamw"]["state"] == {}
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, weights[name]) or value.isnan().any() for name, value in model.state_dict().items())
