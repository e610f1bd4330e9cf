"""What the first hour found, as a table for the terminal."""
import json
import sys
from pathlib import Path

from flm_nb.units import format_si

COSTS = [("CPU time", "cpu_s", "cpu_s", "s"), ("wall time", "s", "s", "s"),
         ("arithmetic", "flop", "flop", "FLOP"), ("memory", "peak_bytes", "peak_bytes", "B")]


def cost_lines(name, run):
    """Predicted, measured and ratio of one training run."""
    yield f"{name:<24}{'predicted':>14}{'measured':>14}{'ratio':>8}"
    for label, guess, fact, unit in COSTS:
        predicted = run[f"predicted_{guess}"]
        measured = run[f"{'counted' if unit == 'FLOP' else 'measured'}_{fact}"]
        yield (f"  {label:<22}{format_si(predicted, unit):>14}{format_si(measured, unit):>14}"
               f"{measured / predicted:>8.2f}")


def score_lines(story):
    """Each rung of the ladder, cheapest first, with its interval where it has one."""
    title = f"accuracy on {story['n_test']:,} test rows"
    yield f"\n{title:<38}{'95 % interval':>22}"
    for name, score in story["baselines"].items():
        yield f"  {name.replace('_', ' '):<22}{score:>14.1%}"
    for name in ("full", "lora"):
        run = story[name]
        interval = f"{run['accuracy_low']:.1%} to {run['accuracy_high']:.1%}"
        yield f"  {name:<22}{run['accuracy']:>14.1%}{interval:>22}"


def summary(story):
    """All lines."""
    threshold, serve = story["threshold"], story["serve"]
    yield f"\n{story['model']} on {story['n_train']:,} rows of {story['dataset']}\n"
    yield from cost_lines("full fine-tuning", story["full"])
    yield from cost_lines("LoRA", story["lora"])
    yield from score_lines(story)
    yield (f"\nserving: {serve['latency_ms']:.1f} ms an item, "
           f"{serve['usd_per_1000']:.2g} USD per 1,000")
    if threshold["value"] is not None:
        value = threshold["value"]
        value = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        yield (f"threshold: at {threshold['driver']} = {value} {threshold['unit']} "
               f"the best path turns from {threshold['from']} to {threshold['to']}")
    yield ("\nRead     build/first_hour.html (what ran), build/memo.html (the decision)"
           "\nGo on    make lab    then walkthroughs/10_pretrain and 90_threshold"
           "\nAsk      .venv/bin/flm invest flm_nb/catalogue/example.toml"
           "\n         .venv/bin/flm estimate pretrain --params 7B --tokens 2T "
           "--accelerator H100-SXM-80GB --count 256")


if __name__ == "__main__":
    for line in summary(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        print(line)
