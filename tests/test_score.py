"""Heads, scores and comparisons against their definitions, and against each other."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

torch = pytest.importorskip("torch")
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig  # noqa: E402

from flm_nb.core import InputError, cache_folder  # noqa: E402
from flm_nb.data.language import BytePart  # noqa: E402
from flm_nb.data.text import TextPart  # noqa: E402
from flm_nb.score.compare import (  # noqa: E402
    accuracy_interval,
    paired_difference,
    published_difference,
    seeds_summary,
)
from flm_nb.score.metrics import (  # noqa: E402
    accuracy,
    bits_per_byte,
    confusion,
    embed,
    linear_probe,
    macro_f1,
    majority,
    metric,
    predict_proba,
    report,
    row_losses,
    worst_losses,
)
from flm_nb.tasks.heads import (  # noqa: E402
    check_batch,
    classification_loss,
    load_classifier,
    load_language_model,
    next_token_loss,
)

CLASSES = some.lists(some.tuples(some.integers(0, 3), some.integers(0, 3)), min_size=1,
                     max_size=40)


def small_bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64))


def small_part(rows=40):
    random = np.random.default_rng(0)
    ids = tuple(random.integers(1, 50, size=size) for size in random.integers(3, 40, size=rows))
    words = tuple("one two three four five six seven eight nine ten eleven twelve thirteen"
                  for _ in ids)
    return TextPart(words, ids, random.integers(0, 2, size=rows), 0)


# ------------------------------------------------------------------ heads and losses
@settings(max_examples=30, deadline=None)
@given(some.integers(1, 6), some.integers(2, 7), some.integers(0, 99))
def test_the_class_loss_is_its_definition_and_its_gradient_p_minus_y(rows, classes, seed):
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, classes, generator=random, dtype=torch.float64, requires_grad=True)
    y = torch.randint(classes, (rows,), generator=random)
    loss = classification_loss(SimpleNamespace(logits=z), {"labels": y})
    p = z.detach().exp() / z.detach().exp().sum(1, keepdim=True)
    by_hand = -p[torch.arange(rows), y].log().mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)  # the loss is in fp32
    loss.backward()
    truth = torch.nn.functional.one_hot(y, classes)
    torch.testing.assert_close(z.grad, (p - truth) / rows, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(some.integers(1, 4), some.integers(2, 9), some.integers(0, 99))
def test_the_token_loss_skips_padding_and_the_last_scores(rows, tokens, seed):
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, tokens, 5, generator=random)
    ids = torch.randint(5, (rows, tokens), generator=random)
    lengths = torch.randint(2, tokens + 1, (rows,), generator=random)
    mask = (torch.arange(tokens)[None] < lengths[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    loss = next_token_loss(SimpleNamespace(logits=z), batch)
    losses = [-z[r, t].log_softmax(0)[ids[r, t + 1]].item()
              for r in range(rows) for t in range(lengths[r] - 1)]
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_new_head_depends_on_its_seed_and_leaves_the_generator_alone(tmp_path):
    small_bert().save_pretrained(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    heads = [load_classifier(tmp_path, ["a", "b", "c"], seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    same, again, other = (head.classifier.weight for head in heads)
    assert same.shape == (3, 16) and torch.equal(same, again) and not torch.equal(same, other)
    assert heads[0].config.id2label == {0: "a", 1: "b", 2: "c"}


def test_dropout_is_set_everywhere_or_nowhere(tmp_path):
    small_bert().save_pretrained(tmp_path)
    for wanted, expected in ((None, 0.1), (0.3, 0.3), (0.0, 0.0)):
        model = load_classifier(tmp_path, ["a", "b"], dropout=wanted)
        dropouts = {name: m.p for name, m in model.named_modules()
                    if isinstance(m, torch.nn.Dropout)}
        within = wanted or 0.0  # in attention only when it is asked for
        assert model.config.attention_probs_dropout_prob == within
        assert {p for name, p in dropouts.items() if "attention.self" in name} <= {within}
        assert {p for name, p in dropouts.items() if "attention.self" not in name} == {expected}
        assert model.config.hidden_dropout_prob == expected
    model.train()
    batch = small_part().batch(range(4))
    assert torch.equal(model(**batch).logits, model(**batch).logits)  # nothing random is left


@pytest.mark.parametrize("labels", [["a"], [], ["a", "a"], "ab"])
def test_labels_must_be_different_names(labels):
    with pytest.raises(InputError, match="labels"):
        load_classifier("all-MiniLM-L6-v2", labels)


def test_models_that_are_not_there_get_one_sentence(monkeypatch, tmp_path):
    def no_network(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    for source in ("nobody/nothing", str(tmp_path)):
        for load in (lambda s: load_classifier(s, ["a", "b"]), load_language_model):
            with pytest.raises(InputError, match="cannot be loaded") as caught:
                load(source)
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="model_type='nothing' makes no language model"):
        load_language_model({"model_type": "nothing"})


def test_a_language_model_from_a_dict_is_the_one_from_its_config():
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
                         num_hidden_layers=1, num_attention_heads=2)
    ours = [load_language_model(source, seed=3) for source in (config, config.to_dict())]
    for one, other in zip(*(model.parameters() for model in ours), strict=True):
        assert torch.equal(one, other)


def test_batches_are_checked_against_the_model():
    model, batch = small_bert(), small_part().batch([0, 1])
    check_batch(model, batch)
    with pytest.raises(InputError, match="batch='attn' is no argument"):
        check_batch(model, batch | {"attn": batch["attention_mask"]})
    for label in (2, -1):
        with pytest.raises(InputError, match=f"labels={label} is outside the classes 0 to 1"):
            check_batch(model, batch | {"labels": torch.tensor([0, label])})


# ------------------------------------------------------------------ metrics
@settings(max_examples=30, deadline=None)
@given(CLASSES)
def test_accuracy_and_macro_f1_are_their_definitions(rows):
    y, guesses = map(np.array, zip(*rows, strict=True))
    assert accuracy(y, guesses) == pytest.approx(np.mean(y == guesses))
    scores = []
    for kind in set(y) | set(guesses):
        hits = np.sum((y == kind) & (guesses == kind))
        scores.append(2 * hits / (np.sum(y == kind) + np.sum(guesses == kind)))
    assert macro_f1(y, guesses) == pytest.approx(np.mean(scores))
    assert accuracy(y, np.eye(4)[guesses]) == accuracy(y, guesses)  # probabilities will do
    assert np.mean(y == majority(y)) == pytest.approx(max(np.mean(y == k) for k in y))


def test_your_own_metric_module_loads_from_its_file(tmp_path):
    path = tmp_path / "always_one.py"
    path.write_text("import datasets\nimport evaluate\n\n\nclass AlwaysOne(evaluate.Metric):\n"
                    "    def _info(self):\n        whole = datasets.Value('int64')\n"
                    "        return evaluate.MetricInfo(description='', citation='', features="
                    "datasets.Features({'predictions': whole, 'references': whole}))\n\n"
                    "    def _compute(self, predictions, references):\n"
                    "        return {'one': 1.0}\n", encoding="utf-8")
    assert metric(str(path)).compute(predictions=[0], references=[1]) == {"one": 1.0}
    with pytest.raises(InputError, match="is no metric here"):
        metric(str(cache_folder() / "nothing_of_this_name.py"))


def test_scores_need_one_prediction_per_row():
    for y, p in (([0, 1], [0]), ([], [])):
        for score in (accuracy, macro_f1, lambda a, b: report(a, b, ["x", "y"])):
            with pytest.raises(InputError, match="do not match"):
                score(y, p)


def test_probabilities_come_back_in_order_and_the_model_as_it_was():
    model, part = small_bert().train(), small_part()
    p = predict_proba(model, part, batch_size=7, precision="fp32")
    assert model.training and p.shape == (40, 2)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    model.eval()
    with torch.no_grad():
        for row in range(len(part)):
            alone = model(input_ids=torch.tensor(part.ids[row])[None]).logits.softmax(-1)[0]
            np.testing.assert_allclose(p[row], alone, atol=1e-5)


def test_embeddings_are_means_without_padding():
    model, part = small_bert().eval(), small_part(12)
    vectors = embed(model, part, batch_size=5, precision="fp32")
    with torch.no_grad():
        for row in range(len(part)):
            hidden = model.bert(input_ids=torch.tensor(part.ids[row])[None]).last_hidden_state
            np.testing.assert_allclose(vectors[row], hidden[0].mean(0), atol=1e-5)


def test_a_probe_finds_a_line_and_refuses_what_has_none():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 20))
    y = (vectors[:, 3] > 0).astype(int)
    assert accuracy(y[200:], linear_probe(vectors[:200], y[:200]).predict(vectors[200:])) > 0.9
    shuffled = random.permutation(y)
    chance = linear_probe(vectors[:200], shuffled[:200]).predict(vectors[200:])
    assert accuracy(shuffled[200:], chance) < 0.65  # three standard errors above one half
    linear_probe(vectors[:5], [0, 1, 1, 1, 1])  # a single row of a class: no folds
    for bad in ([0] * 300, y[:-1]):
        with pytest.raises(InputError, match="labels for 300 vectors"):
            linear_probe(vectors, bad)


def test_report_and_confusion_count_the_same_rows():
    y, guesses = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
    names = ("x", "y", "<z>")
    table, told = confusion(y, guesses, names), report(y, guesses, names)
    assert table.counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert told.rows["x"] == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3))
    assert told.rows["<z>"] == (0.0, 0.0, 0.0, 1) and "<z>" not in told._repr_html_()
    assert "alt=" in table._repr_html_() and len(table.picture.png) < 60_000


def test_the_worst_rows_are_the_surest_mistakes_and_stay_short():
    part, p = small_part(3), np.array([[0.9, 0.1], [0.5, 0.5], [0.99, 0.01]])
    part = TextPart(part.texts, part.ids, np.array([1, 1, 1]), 0)
    worst = worst_losses(part, p, ("no", "yes"), most=2).rows
    assert [round(row[0], 3) for row in worst] == [round(-math.log(q), 3) for q in (0.01, 0.1)]
    assert worst[0][1:3] == ("yes", "no") and worst[0][3].endswith("twelve …")
    assert np.isfinite(row_losses([0], np.array([[0.0, 1.0]]))).all()


def test_bits_per_byte_count_bytes_and_not_blocks():
    class Known(torch.nn.Module):
        """Gives the next byte, one more than this one, a probability of one half."""
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids):
            sure = torch.nn.functional.one_hot((input_ids + 1) % 256, 256)
            return SimpleNamespace(logits=sure * math.log(255.0) + self.weight)

    part = BytePart(np.arange(100, dtype=np.uint8), 9, ())
    for batch_size in (1, 4, 50):
        bits = bits_per_byte(Known(), part.blocks(batch_size), precision="fp32")
        assert bits == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="predict no byte"):
        bits_per_byte(Known(), [])


# ------------------------------------------------------------------ comparisons
@given(some.lists(some.booleans(), min_size=1, max_size=300), some.floats(0.5, 0.999))
def test_wilson_solves_its_own_equation(correct, level):
    from scipy.stats import norm

    found, z = accuracy_interval(correct, level=level), norm.ppf(0.5 + level / 2)
    assert 0 <= found.low <= found.value <= found.high <= 1
    for edge in (found.low, found.high):  # the truths that are z standard errors away
        if 1e-9 < edge < 1 - 1e-9:
            error = math.sqrt(edge * (1 - edge) / len(correct))
            assert abs(found.value - edge) / error == pytest.approx(z, rel=1e-6)


def test_wilson_against_a_published_row():
    found = accuracy_interval([True] * 81 + [False] * 182)  # Newcombe 1998, table I: 81 of 263
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@settings(max_examples=40, deadline=None)
@given(some.lists(some.tuples(some.booleans(), some.booleans()), min_size=2, max_size=200))
def test_a_paired_difference_turns_its_sign_with_its_models(rows):
    a, b = zip(*rows, strict=True)
    ab, ba = paired_difference(a, b, draws=500), paired_difference(b, a, draws=500)
    assert ab.value == -ba.value and ab.p_value == ba.p_value
    assert ab.value == pytest.approx(np.mean(a) - np.mean(b))
    assert ab.low <= ab.value <= ab.high
    discordant, fewer = ab.only_a + ab.only_b, min(ab.only_a, ab.only_b)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1)) / 2**discordant
    assert ab.p_value == pytest.approx(min(1.0, 2 * tail))
    same = paired_difference(a, a)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_the_multinomial_bootstrap_is_the_bootstrap_of_rows():
    a = np.repeat([1, 1, 0, 0], [60, 14, 6, 20])
    b = np.repeat([1, 0, 1, 0], [60, 14, 6, 20])
    found = paired_difference(a, b, draws=20_000)
    picks = np.random.default_rng(1).integers(0, 100, (20_000, 100))
    by_rows = np.quantile((a[picks] - b[picks]).mean(1), [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], by_rows, atol=0.0101)  # one row of 100


def test_the_published_comparison_of_sst2():
    close, apart = published_difference(0.930, 0.924, rows=872), published_difference(
        0.953, 0.930, rows=872)
    assert "no difference" in close.verdict and close.p_value == pytest.approx(0.63, abs=0.01)
    assert apart.verdict == "A is better" and apart.p_value == pytest.approx(0.041, abs=0.002)
    for bad in ({"accuracy_a": 93, "accuracy_b": 0.9, "rows": 10},
                {"accuracy_a": 0.93, "accuracy_b": 0.9, "rows": 0}):
        with pytest.raises(InputError):
            published_difference(**bad)


def test_seeds_follow_student():
    from scipy.stats import ttest_1samp

    scores = [0.71, 0.74, 0.69, 0.73]
    found, theirs = seeds_summary(scores), ttest_1samp(scores, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    for bad in ([0.7], [], [0.7, float("nan")]):
        with pytest.raises(InputError, match="finite"):
            seeds_summary(bad)


@pytest.mark.parametrize("correct", [[], [0.5], [[True]], [2, 0], [float("nan")]])
def test_only_right_and_wrong_are_counted(correct):
    with pytest.raises(InputError, match="right and wrong"):
        accuracy_interval(correct)
    with pytest.raises(InputError, match="right and wrong"):
        paired_difference(correct, correct)
